"""The maps of all frames by a fixed picture encoder, computed once and kept in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.transforms.clip_views import MEAN, STD, CentreCrop
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.frozen_features import frozen_rows, rows_key

#: Frames that go through the encoder at a time.
BATCH = 32


def map_level(encoder: VisualEncoder, stride: int) -> int:
    """The number of the encoder's maps of that stride, or of its coarsest if ``stride`` is 0.

    Raises:
        ValueError: it has no maps of that stride.
    """
    strides = list(encoder.strides)
    if stride and stride not in strides:
        raise ValueError(
            f"frame_stride must be one of {encoder.name}'s, {', '.join(map(str, strides))}; got {stride}"
        )
    return strides.index(stride) if stride else len(strides) - 1


def maps_file(run: Path, split: str) -> Path:
    """The file in a run's folder that keeps the maps of a split."""
    return run / f"maps_{split}.npy"


@torch.no_grad()
def keep_frame_maps(
    clips: Clips,
    encoder: VisualEncoder,
    recipe: CMACRecipe,
    file: Path | None = None,
    *,
    mixed: bool = False,
) -> None:
    """Put the encoder's maps of every frame, float16 (F, C, h, w), in the place of the clips' frames.

    The maps are those of ``recipe.frame_stride``. Frames are the largest centred squares of what is seen of them,
    resized to ``recipe.size``, and not augmented. The maps are read from ``file`` if they are of this encoder and these
    videos, else computed, with ``mixed`` in bfloat16, and written to it. Videos that break are left out.
    """
    counts = clips.frame_counts()
    starts = [sum(counts[:i]) for i in range(len(counts))]
    level = map_level(encoder, recipe.frame_stride)
    channels, side = encoder.channels[level], recipe.size // encoder.strides[level]
    encoder.to(clips.device)

    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        whole: Iterable[tuple[int, Tensor, Tensor]] = track(
            clips.whole(), "maps of frames", total=len(clips), disable=not sys.stderr.isatty(), transient=True
        )
        for index, frames, _ in whole:
            crop = CentreCrop(torch.tensor([frames.shape[2:]]), crop=recipe.size, window=recipe.window)
            for start in range(0, len(frames), BATCH):
                view = crop(frames[None, start : start + BATCH].to(clips.device))[0].transpose(0, 1)
                pictures = (view * STD + MEAN).clamp(0, 1)
                with torch.autocast(pictures.device.type, torch.bfloat16, enabled=mixed):
                    maps = encoder.maps(pictures, coarsest=encoder.strides[level])[-1]
                yield starts[index] + torch.arange(start, start + len(maps)), maps

    settings = [encoder.fingerprint(), recipe.size, recipe.short_side, recipe.fps, recipe.backend, counts]
    if recipe.window or mixed or level != len(encoder.strides) - 1:
        settings += [recipe.window, mixed, encoder.strides[level]]
    key = rows_key(settings, (entry.path for entry in clips.entries))
    rows = frozen_rows(file, key, (sum(counts), channels, side, side), compute, torch.float16)
    by_recording = {i: rows[starts[i] : starts[i] + counts[i]] for i in range(len(clips))}
    clips.keep_maps({i: maps for i, maps in by_recording.items() if maps[:, 0, 0, 0].isfinite().all()})
