"""Frames to a network's input, by torchvision's v2 transforms per clip, by ``grid_sample`` per batch, and by ours."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import prepare_frames

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula

#: CMAC's, of colours in [0, 1].
MEAN, STD = 0.45, 0.225


@functools.lru_cache(2)
def problem(task: str, n: int, size: tuple[int, ...], seed: int = 0) -> Problem:
    """Clips (n, T, 3, h, w) of ``size``, and a square of each, whole pixels so that torchvision can cut it out."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = size
    least = min(height, width)
    side = torch.randint(least * 4 // 5, least + 1, (n,), generator=generator)
    corners = torch.rand(n, 2, generator=generator) * (torch.tensor([width, height]) - side[:, None] + 1)
    tensors = {
        "frames": torch.randint(256, (n, count, 3, height, width), dtype=torch.uint8, generator=generator),
        "boxes": torch.cat([corners.floor(), side[:, None].expand(n, 2)], 1).double(),
        "flip": torch.arange(n) % 2 == 0,
    }
    if task == "frames, recoloured":
        tensors["jitter"] = 1 + 0.4 * (2 * torch.rand(n, 3, generator=generator).double() - 1)
    return Problem(tensors, ())


def view_of(size: tuple[int, ...]) -> int:
    """The side of the views: CMAC's for clips, ImageNet's for pictures."""
    return 128 if size[0] > 1 else 224


def _torchvision(frames: Tensor, boxes: Tensor, flip: Tensor, jitter: Tensor | None = None) -> Tensor:
    """torchvision's transforms at their fastest: in uint8 up to the last step."""
    import torchvision.transforms.v2.functional as tv  # a GPU's machine may lack it

    side, clips = view_of(frames.shape[1:2]), []
    for row, clip in enumerate(frames):
        left, top, width, height = map(int, boxes[row].tolist())
        view = tv.resized_crop(clip, top, left, height, width, [side, side], antialias=False)
        if flip[row]:
            view = tv.horizontal_flip(view)
        if jitter is not None:
            brightness, contrast, saturation = jitter[row].tolist()
            view = tv.adjust_contrast(tv.adjust_brightness(view, brightness), contrast)
            view = tv.adjust_saturation(view, saturation)
        view = tv.normalize(tv.to_dtype(view, torch.float32, scale=True), [MEAN] * 3, [STD] * 3)
        clips.append(view.transpose(0, 1))
    return torch.stack(clips)


def _with(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def prepare(frames: Tensor, boxes: Tensor, flip: Tensor, jitter: Tensor | None = None) -> Tensor:
        return function(
            frames, boxes, size=view_of(frames.shape[1:2]), flip=flip, jitter=jitter, mean=MEAN, std=STD,
            dtype=boxes.dtype,
        )  # fmt: skip

    return prepare


def _arguments(p: Problem) -> tuple:
    return tuple(p.tensors.values())


_EAGER, _OURS = _with(reference.prepare_frames), _with(prepare_frames)


def _truth(p: Problem) -> Tensor:
    return _EAGER(*_arguments(p))


_PROVIDERS = {
    "torchvision v2": Provider(lambda p: lambda: _torchvision(*_arguments(p)), _truth),
    "grid_sample": formula(_truth),
    "torch.compile of it": compiled(_EAGER, _arguments),
    OURS: Provider(lambda p: lambda: _OURS(*_arguments(p)), _truth),
}
PROVIDERS: dict[str, dict[str, Provider]] = dict.fromkeys(("frames", "frames, recoloured"), _PROVIDERS)
