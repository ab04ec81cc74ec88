"""Decoded frames to a network's input, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def prepare_frames(
    frames: Tensor,
    boxes: Tensor,
    *,
    size: int | tuple[int, int],
    image_sizes: Tensor | None = None,
    flip: Tensor | None = None,
    jitter: Tensor | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Crop, resize, flip, jitter and normalise clips, from one read of their frames.

    A box is resized bilinearly without antialiasing. An enlarged one blends with the pixels around it at its edges;
    beyond the outermost pixel centres of the frame there is only their colour. Colours are in [0, 1] and change as
    torchvision's do: brightness, contrast about the mean grey of each frame's view, saturation. Then
    ``(colour - mean) / std``.

    Args:
        frames: uint8 (B, T, 3, h, w). A batch of pictures has T = 1.
        boxes: (B, 4) floating: each clip's box in pixels of its frames, as left, top, width and height (torchvision's
            "xywh").
        size: side of the views, or (H, W).
        image_sizes: (B, 2) integers: height and width of each clip, which fills the upper left of its frames; the rest
            is never seen. All of the frames by default.
        flip: (B,) bool, True for views turned left to right; none by default.
        jitter: (B, 3) floating: factors of brightness, contrast and saturation of each clip. Unchanged by default.
        mean, std: of colours in [0, 1], one number or three.
        dtype: of the result, float32, bfloat16 or float16; float64 with ``impl="reference"``.
        channels_last: the result in ``torch.channels_last_3d``.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (B, 3, T, H, W) of ``dtype``. Without gradients.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, or on the CPU with values outside what
            is said here, before any work.

    Cost: one read of the boxes and one write of the result; with jitter on a GPU, two reads. Frames whose rows are
    not contiguous are copied. On the CPU a frame's view waits in the cache until its mean grey is known.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import prepare_frames
        >>> frames = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).expand(1, 1, 3, 1, 4)
        >>> prepare_frames(frames, torch.tensor([[1.0, 0.0, 2.0, 1.0]]), size=(1, 2))[0, 0]
        tensor([[[0.2000, 0.4000]]])
    """
    size = _check_size(size)
    _check_frames(frames)
    _check_numbers("boxes", boxes, (frames.shape[0], 4), frames.device)
    if jitter is not None:
        _check_numbers("jitter", jitter, (frames.shape[0], 3), frames.device)
    if image_sizes is not None:
        _check_image_sizes(image_sizes, frames)
    if flip is not None:
        _check_flip(flip, frames)
    if _checks.readable(boxes):
        _check_values(boxes, jitter)
    colours = {"mean": _three("mean", mean), "std": _three("std", std)}
    if any(value == 0 for value in colours["std"]):
        raise ValueError(f"std must not be 0, got {std!r}")
    _checks.check_flags(channels_last=channels_last)
    if dtype not in _checks.FLOATING or (dtype == torch.float64 and impl != "reference"):
        raise TypeError(
            f"dtype must be torch.float32, torch.bfloat16 or torch.float16 "
            f"(or torch.float64 with impl='reference'), got {dtype!r}"
        )
    if choose("prepare_frames", impl, frames.device.type, dtype, 3) == "reference":
        return reference.prepare_frames(
            frames, boxes, size=size, image_sizes=image_sizes, flip=flip, jitter=jitter, dtype=dtype,
            channels_last=channels_last, **colours,
        )  # fmt: skip
    out = torch.ops.cmx_fast.prepare_frames(
        frames,
        boxes.float(),
        None if image_sizes is None else image_sizes.int(),
        flip,
        None if jitter is None else jitter.float(),
        size,
        colours["mean"],
        colours["std"],
        dtype,
        channels_last,
    )
    return out.permute(0, 4, 1, 2, 3) if channels_last else out


def _check_size(size: object) -> tuple[int, int]:
    both = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(both, Sequence)
        or len(both) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) for side in both)
    ):
        raise TypeError(f"size must be an integer or two, (height, width), got {size!r}")
    if min(both) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    return both[0], both[1]


def _check_frames(frames: object) -> None:
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise TypeError(f"frames must be a uint8 tensor (B, T, 3, h, w), got {kind}")
    if frames.dim() != 5 or frames.shape[2] != 3 or 0 in frames.shape[3:]:
        raise ValueError(f"frames must have shape (B, T, 3, h, w) with pixels, got {tuple(frames.shape)}")


def _check_place(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device} but frames is on {device}; move one of them")


def _check_numbers(name: str, value: Tensor, shape: tuple[int, int], device: torch.device) -> None:
    _checks.check_floating(name, value, 2, f"(B, {shape[1]})")
    _check_place(name, value, shape, device)
    if value.requires_grad:
        raise ValueError(f"{name} requires a gradient, which prepare_frames has not; use {name}.detach()")


def _check_image_sizes(image_sizes: object, frames: Tensor) -> None:
    integers = (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not isinstance(image_sizes, Tensor) or image_sizes.dtype not in integers:
        kind = image_sizes.dtype if isinstance(image_sizes, Tensor) else type(image_sizes).__name__
        raise TypeError(f"image_sizes must be a tensor of integers (B, 2), got {kind}; use image_sizes.int()")
    _check_place("image_sizes", image_sizes, (frames.shape[0], 2), frames.device)
    if _checks.readable(image_sizes):
        most = torch.tensor(frames.shape[3:])
        wrong = ((image_sizes < 1) | (image_sizes > most)).any(1)
        if wrong.any():
            raise ValueError(
                f"image_sizes must be from (1, 1) to the frames' {tuple(most.tolist())}, "
                f"got {tuple(image_sizes[wrong][0].tolist())}"
            )


def _check_flip(flip: object, frames: Tensor) -> None:
    if not isinstance(flip, Tensor) or flip.dtype != torch.bool:
        kind = flip.dtype if isinstance(flip, Tensor) else type(flip).__name__
        raise TypeError(f"flip must be a bool tensor (B,), got {kind}; use flip.bool()")
    _check_place("flip", flip, (frames.shape[0],), frames.device)


def _check_values(boxes: Tensor, jitter: Tensor | None) -> None:
    wrong = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > 0).all(1))
    if wrong.any():
        raise ValueError(
            f"boxes must be finite with positive width and height, got {boxes[wrong][0].tolist()}"
        )
    if jitter is not None and not (jitter.isfinite() & (jitter >= 0)).all():
        wrong = ~(jitter.isfinite() & (jitter >= 0)).all(1)
        raise ValueError(f"jitter must be finite and at least 0, got {jitter[wrong][0].tolist()}")


def _three(name: str, value: float | Sequence[float]) -> list[float]:
    numbers = list(value) if isinstance(value, Sequence) else [value] * 3
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise TypeError(f"{name} must be a number or three, got {value!r}")
    if len(numbers) != 3 or not all(-math.inf < number < math.inf for number in numbers):
        raise ValueError(f"{name} must be one finite number or three, got {value!r}")
    return [float(number) for number in numbers]


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::prepare_frames")
    def _(frames, windows, sizes, mirrored, factors, size, mean, std, dtype, channels_last):
        clips, count = frames.shape[:2]
        shape = (clips, count, *size, 3) if channels_last else (clips, 3, count, *size)
        return frames.new_empty(shape, dtype=dtype)

    register_triton("prepare_frames", "prepare_frames.prepare_frames")
