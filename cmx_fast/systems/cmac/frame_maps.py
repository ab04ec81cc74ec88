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


def maps_file(run: Path, split: str) -> Path:
    """The file in a run's folder that keeps the maps of a split."""
    return run / f"maps_{split}.npy"


@torch.no_grad()
def keep_frame_maps(
    clips: Clips, encoder: VisualEncoder, recipe: CMACRecipe, file: Path | None = None
) -> None:
    """Put the encoder's coarsest maps of every frame, float16 (F, C, h, w), in the place of the clips' frames.

    Frames are the largest centred squares, resized to ``recipe.size``, and not augmented. The maps are read from
    ``file`` if they are of this encoder and these videos, else computed, and written to it. Videos that break are left
    out.
    """
    counts = clips.frame_counts()
    starts = [sum(counts[:i]) for i in range(len(counts))]
    side = recipe.size // encoder.strides[-1]
    encoder.to(clips.device)

    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        whole: Iterable[tuple[int, Tensor, Tensor]] = track(
            clips.whole(), "maps of frames", total=len(clips), disable=not sys.stderr.isatty(), transient=True
        )
        for index, frames, _ in whole:
            crop = CentreCrop(torch.tensor([frames.shape[2:]]), crop=recipe.size)
            for start in range(0, len(frames), BATCH):
                view = crop(frames[None, start : start + BATCH].to(clips.device))[0].transpose(0, 1)
                maps = encoder.maps((view * STD + MEAN).clamp(0, 1))[-1]
                yield starts[index] + torch.arange(start, start + len(maps)), maps

    key = rows_key(
        [encoder.fingerprint(), recipe.size, recipe.short_side, recipe.fps, recipe.backend, counts],
        (entry.path for entry in clips.entries),
    )
    rows = frozen_rows(file, key, (sum(counts), encoder.channels[-1], side, side), compute, torch.float16)
    by_recording = {i: rows[starts[i] : starts[i] + counts[i]] for i in range(len(clips))}
    clips.keep_maps({i: maps for i, maps in by_recording.items() if maps[:, 0, 0, 0].isfinite().all()})
