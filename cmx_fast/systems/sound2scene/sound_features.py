"""Held-out scenes of a run, a sound encoder's features of them, and the ranks of their pictures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.scenes import Scenes
from cmx_fast.data.sets.selection import Selection, key
from cmx_fast.systems.sound2scene.model import SoundEncoder
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe

#: Sounds per batch.
BATCH = 64


def open_data(
    scenes: Scenes, recipe: Sound2SceneRecipe, size: int, selection: Selection | None = None
) -> SceneData:
    """Open a split's pictures, of ``size`` pixels, and its sounds with the recipe's numbers."""
    return SceneData(
        scenes,
        size=size,
        moments=recipe.moments,
        seconds=recipe.seconds,
        heard=recipe.heard or None,
        selection=selection,
        backend=recipe.backend,
        cache=recipe.cache,
    )


def selected(data: SceneData) -> str:
    """A message's end: the number of scenes that the selection names, and of the others; empty without a selection."""
    if not data.selection:
        return ""
    others = len(data) - data.selected
    return f"; the selection names {data.selected}" + (
        f", of {others} evenly spaced frames" if others else ""
    )


def check_selection(file: Path | str | None, selection: Selection, *splits: SceneData) -> None:
    """
    Raises:
        ValueError: the selection names no scene of any split, so that it would change nothing.
    """
    if not any(split.selected for split in splits):
        first, expected = next(iter(selection), "nothing"), key(splits[0].entries[0].name)
        raise ValueError(
            f"selection: {file} names none of the videos; it begins with {first!r}, where the first video would be "
            f"{expected!r}"
        )


@torch.no_grad()
def sound_features(encoder: SoundEncoder, data: SceneData) -> tuple[Tensor, Tensor]:
    """The numbers of the scenes whose sound can be read, int64 (N,), and z^A of each, float32 (N, D), on the CPU."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    batches = [
        (index, encoder(waves.to(device)).float().cpu())
        for index, waves in data.sounds(torch.arange(len(data)).split(BATCH))
    ]
    encoder.train(training)
    index, features = (torch.cat(part) for part in zip(*batches, strict=True))
    return index, features


def own_rank(queries: Tensor, gallery: Tensor) -> Tensor:
    """The number of gallery rows nearer (by cosine) to each query than its own, the row of the same number: (N,)."""
    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    own = (queries * gallery).sum(1, keepdim=True)
    # The margin is for rounding: the two products round differently.
    return torch.cat(
        [(q @ gallery.T > o + 1e-6).sum(1) for q, o in zip(queries.split(1024), own.split(1024), strict=True)]
    )
