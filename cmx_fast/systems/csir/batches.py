"""Class-balanced, augmented training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.recipe import STAGES, CSIRRecipe
from cmx_fast.train.trainable import Batch


def check_shares(recipe: CSIRRecipe, world: int) -> None:
    """Raise ValueError if a stage's batch leaves a process without one whole class."""
    for name in STAGES:
        batch = getattr(recipe, f"{name}_batch")
        if share(batch, recipe.samples_per_class, world) == 0:
            raise ValueError(
                f"{name}_batch = {batch} leaves {world} processes fewer than one class of {recipe.samples_per_class} "
                f"samples each; --set {name}_batch=..."
            )


def share(batch: int, samples_per_class: int, world: int) -> int:
    """The samples of a batch that each of ``world`` processes takes: whole classes, as many in each."""
    return batch // (samples_per_class * world) * samples_per_class


def training_batches(
    data: PairData,
    recipe: CSIRRecipe,
    batch: int,
    modalities: tuple[str, ...],
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> Callable[[int], Iterator[Batch]]:
    """Gives endless class-balanced, augmented batches of ``batch`` utterances per process, from a step on.

    Responses without a picture are in those that have the modality "logmel" alone.
    """
    labels = data.space[: data.paired] if "image" in modalities else data.space

    def batches(start: int) -> Iterator[Batch]:
        stream = class_balanced(labels, batch * world, recipe.samples_per_class, seed)
        own_rows = (rows[rank * batch : (rank + 1) * batch] for rows in islice(stream, start, None))
        for loaded in data.load(own_rows, modalities):
            if "logmel" in loaded:
                loaded["logmel"] = random_crop(loaded["logmel"], recipe.frames, recipe.gain_db)
            if "image" in loaded:
                loaded["image"] = random_zoom(loaded["image"], recipe.zoom)
            yield loaded

    return batches


def class_balanced(labels: Tensor, batch: int, samples_per_class: int, seed: int) -> Iterator[list[int]]:
    """Endless lists of row numbers: ``batch // samples_per_class`` classes, ``samples_per_class`` rows of each.

    Classes and the rows of a class are drawn from shuffled decks, so all come up equally often. The stream
    depends on the arguments alone: skipping to a step resumes it.
    """
    generator = torch.Generator().manual_seed(seed)

    def deck(cards: Tensor) -> Iterator[int]:
        while True:
            yield from cards[torch.randperm(len(cards), generator=generator)].tolist()

    classes = labels.unique()
    rows = {int(c): deck((labels == c).nonzero().squeeze(1)) for c in classes}
    order = deck(classes)
    while True:
        yield [
            row
            for _ in range(batch // samples_per_class)
            for row in islice(rows[next(order)], samples_per_class)
        ]


def random_crop(logmel: Tensor, frames: int, gain_db: float) -> Tensor:
    """Cut log-mels (B, M, T) to (B, M, frames) from a random start; add a random gain of up to +-``gain_db``."""
    count = len(logmel)
    start = torch.randint(logmel.shape[2] - frames + 1, (count, 1))
    gain = (torch.rand(count, 1, 1) * 2 - 1) * gain_db
    frame = (start + torch.arange(frames)).to(logmel.device)
    cropped = logmel.gather(2, frame[:, None].expand(-1, logmel.shape[1], -1))
    return cropped + gain.to(logmel.device)


def random_zoom(image: Tensor, zoom: float) -> Tensor:
    """Enlarge a random window of 1 - zoom to 1 of each side to the whole picture (B, 3, S, S); mirror half of them."""
    if zoom == 0:
        return image
    count = len(image)
    scale = 1 - zoom * torch.rand(count)
    shift = (torch.rand(count, 2) * 2 - 1) * (1 - scale)[:, None]
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(theta.to(image.device), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
