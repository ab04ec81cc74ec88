"""Trains a network that locates sounds in pictures, by which moments of videos are selected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.loaders.upload import upload
from cmx_fast.systems.sound2scene.localiser.inference import own_is_best
from cmx_fast.systems.sound2scene.localiser.model import Localiser, load_imagenet_resnet18
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant
from cmx_fast.train.trainable import Batch

#: Evaluations on the held-out videos during training, for the curves.
EVALUATIONS = 5


def localiser_stage(
    recipe: LocaliserRecipe,
    train: SceneData,
    test: SceneData,
    seed: int,
    device: torch.device,
    picture_weights: Path | None,
) -> Stage[Localiser]:
    """The training of a new localiser; ``picture_weights`` are torchvision's of ResNet-18, None: random ones."""
    module = initialised(seed, lambda: Localiser(recipe))
    if picture_weights is not None:
        load_imagenet_resnet18(module, picture_weights)
    batches = VideoBatches(train, recipe.batch, seed, device)
    steps = recipe.epochs * batches.steps_per_epoch
    return Stage(
        "localiser",
        module,
        [{"params": list(module.parameters()), "lr": recipe.lr}],
        steps,
        batches,
        seed,
        weight_decay=recipe.weight_decay,
        optimizer=torch.optim.Adam,
        labels=None,
        schedule=constant,
        evaluation=lambda: {"own_is_best": own_is_best(module, test)},
        evaluate_every=max(1, steps // EVALUATIONS),
    )


class VideoBatches:
    """Batches of "picture" (B, 3, S, S) in [0, 1], half mirrored, and "wave" (B, samples); the same for a seed."""

    def __init__(self, data: SceneData, batch: int, seed: int, device: torch.device | str):
        self.data, self.batch, self.seed, self.device = data, batch, seed, device

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data) // self.batch

    def __call__(self, start: int) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.data), generator=generator)
            moments = torch.randint(self.data.moments, (len(self.data),), generator=generator)
            mirrored = torch.rand(len(self.data), generator=generator) < 0.5
            scenes = order.split(self.batch)[skip : self.steps_per_epoch]
            pictures = self.data.pictures([rows * self.data.moments + moments[rows] for rows in scenes])
            sounds = self.data.sounds(list(scenes))
            for (picture_index, picture), (sound_index, wave) in _same_scenes(
                scenes, pictures, sounds, self.data.moments
            ):
                index = picture_index // self.data.moments
                both = torch.isin(index, sound_index)
                if not both.any():  # no scene of which both could be read
                    continue
                wave = upload(wave[torch.isin(sound_index, index)], self.device)
                picture = torch.where(mirrored[index][:, None, None, None], picture.flip(3), picture)[both]
                yield {"picture": upload(picture, self.device).float() / 255, "wave": wave}
            epoch, skip = epoch + 1, 0


#: Numbers (B,) and the pictures or sounds of these numbers.
Indexed = tuple[Tensor, Tensor]


def _same_scenes(
    scenes: Iterable[Tensor], pictures: Iterator[Indexed], sounds: Iterator[Indexed], moments: int
) -> Iterator[tuple[Indexed, Indexed]]:
    """Pair batches of pictures and of sounds by their scenes.

    A batch of which nothing could be read is missing from its stream: paired by order alone, all batches after it would
    have pictures with the sounds of others.
    """
    picture, sound = next(pictures, None), next(sounds, None)
    for batch in scenes:
        has_pictures = picture is not None and bool(torch.isin(picture[0] // moments, batch).all())
        has_sounds = sound is not None and bool(torch.isin(sound[0], batch).all())
        if has_pictures and has_sounds:
            assert picture is not None
            assert sound is not None
            yield picture, sound
        picture = next(pictures, None) if has_pictures else picture
        sound = next(sounds, None) if has_sounds else sound
