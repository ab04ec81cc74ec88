"""Held-out scenes of a run, a sound encoder's features of them, and the ranks of their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.scenes import Scenes, has_validation, open_scenes, validation_part
from cmx_fast.data.sets.selection import Selection, key
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe

#: Sounds per batch.
BATCH = 64
#: The splits' names in messages.
TITLES = {"train": "train", "val": "validation", "test": "held out"}


def open_data(
    scenes: Scenes,
    recipe: Sound2SceneRecipe,
    size: int,
    selection: Selection | None = None,
    workers: int | None = None,
) -> SceneData:
    """Open a split's pictures, of ``size`` pixels, and its sounds with the recipe's numbers."""
    return SceneData(
        scenes,
        size=size,
        stretch=recipe.framing == "stretch",
        moments=recipe.moments,
        seconds=recipe.seconds,
        heard=recipe.heard or None,
        around=recipe.around,
        selection=selection,
        backend=recipe.backend,
        cache=recipe.cache,
        workers=workers,
    )


def open_splits(
    dataset: str,
    root: Path,
    recipe: Sound2SceneRecipe,
    size: int,
    selection: Selection | None = None,
    classes: list[str] | None = None,
    workers: int | None = None,
) -> dict[str, SceneData]:
    """The splits of a set as a run uses them: "train", "test", and with a validation "val".

    That is the set's own (:func:`has_validation`), or a share of the training videos.
    """
    scenes = {split: open_scenes(dataset, root, split, classes) for split in ("train", "test")}
    if recipe.validation and has_validation(dataset, root):
        scenes["val"] = open_scenes(dataset, root, "val", classes)
    elif recipe.validation:
        scenes["train"], scenes["val"] = validation_part(scenes["train"], recipe.validation)
    return {split: open_data(part, recipe, size, selection, workers) for split, part in scenes.items()}


def selected(data: SceneData) -> str:
    """A message's end: the number of scenes that the selection names, of all; empty without a selection."""
    if not data.selection:
        return ""
    others = "" if data.selected == len(data) else ", the others have evenly spaced frames"
    return f"; the selection matches {data.selected} of {len(data)}{others}"


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


def waves_of(data: SceneData, scenes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the scenes whose sound can be read, with their waves (B, samples): around the middle picture's moment,
    or the first seconds.
    """
    each = data.sounds_each
    for index, waves in data.sounds((scenes * each + each // 2).split(BATCH)):
        yield index // each, waves


@torch.no_grad()
def sound_features(encoder: nn.Module, data: SceneData) -> tuple[Tensor, Tensor]:
    """The numbers of the scenes whose sound can be read, int64 (N,), and z^A of each, float32 (N, D), on the CPU."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    batches = [
        (index, encoder(waves.to(device)).float().cpu())
        for index, waves in waves_of(data, torch.arange(len(data)))
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
