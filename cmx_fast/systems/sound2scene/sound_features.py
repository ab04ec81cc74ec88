"""A run's held-out scenes, what a sound encoder makes of their sounds, and how it ranks their pictures."""

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
    """The recipe's pictures and sounds of a split, pictures of ``size`` pixels."""
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
    """How many scenes the selection names and how many it does not, to be said; empty without one."""
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
    if not any(of.selected for of in splits):
        named, wanted = next(iter(selection), "nothing"), key(splits[0].entries[0].name)
        raise ValueError(
            f"selection: {file} names none of the videos; it begins with {named!r}, where the first video would be "
            f"{wanted!r}"
        )


@torch.no_grad()
def sound_features(encoder: SoundEncoder, data: SceneData) -> tuple[Tensor, Tensor]:
    """The scenes whose sound can be read, int64 (N,), and z^A of each, float32 (N, D), on the CPU."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    found = [
        (index, encoder(waves.to(device)).float().cpu())
        for index, waves in data.sounds(torch.arange(len(data)).split(BATCH))
    ]
    encoder.train(training)
    index, features = (torch.cat(part) for part in zip(*found, strict=True))
    return index, features


def own_rank(queries: Tensor, gallery: Tensor) -> Tensor:
    """How many gallery rows are nearer to each query (by cosine) than its own, the row of the same number: (N,)."""
    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    own = (queries * gallery).sum(1, keepdim=True)
    # A little above, since the products are rounded differently.
    return torch.cat(
        [(q @ gallery.T > o + 1e-6).sum(1) for q, o in zip(queries.split(1024), own.split(1024), strict=True)]
    )
