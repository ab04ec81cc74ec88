"""Trains a generator of pictures from the features of pictures."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.scenes import Scenes
from cmx_fast.networks.picture_encoder import PictureEncoder, load_swav
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.sound2scene.icgan.data import NeighbourBatches, ViewBatches
from cmx_fast.systems.sound2scene.icgan.model import ICGAN, TURNS
from cmx_fast.systems.sound2scene.icgan.pretraining import PictureContrast
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant
from cmx_fast.train.session import Session


class Training:
    """The two stages of a run: the picture encoder, where it is small, and the generator."""

    def __init__(self, session: Session, recipe: ICGANRecipe, scenes: Scenes, seed: int, workers: int | None):
        self.session, self.recipe, self.seed = session, recipe, seed
        self.scenes, self.workers, self.opened = scenes, workers, dict[int, SceneData]()

    def open(self, size: int) -> SceneData:
        """The scenes with pictures of this size; opened once, and watched."""
        if size not in self.opened:
            recipe = self.recipe
            self.opened[size] = SceneData(
                self.scenes,
                size=size,
                moments=recipe.moments,
                backend=recipe.backend,
                cache=recipe.cache,
                workers=self.workers,
            )
            self.session.watch(self.opened[size])
        return self.opened[size]

    def train_encoder(self, weights: Path | None) -> PictureEncoder:
        """Load SwAV's weights into the picture encoder, or train it."""
        recipe, device, seed = self.recipe, self.session.fabric.device, self.seed
        if weights is not None:
            encoder = PictureEncoder(recipe.encoder)
            load_swav(encoder, weights)
            return encoder

        def new() -> tuple[PictureEncoder, PictureContrast]:
            encoder = PictureEncoder(recipe.encoder)
            return encoder, PictureContrast(encoder, recipe.temperature)

        encoder, contrast = initialised(seed, new)
        contrast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = ViewBatches(self.open(encoder.size), recipe.encoder_batch, seed, device, hue=recipe.hue)
        self.session.train(
            Stage(
                "pictures",
                contrast,
                [{"params": list(contrast.parameters()), "lr": recipe.encoder_lr}],
                recipe.encoder_steps,
                batches,
                seed,
                labels=None,
            )
        )
        encoder.requires_grad_(False)
        return encoder.eval()

    def train_generator(self, encoder: PictureEncoder | VisualEncoder) -> ICGAN:
        """Train the generator with its discriminator and its average."""
        recipe, device, seed = self.recipe, self.session.fabric.device, self.seed
        pictures = self.open(encoder.size)
        fabric = self.session.fabric
        with fabric.rank_zero_first():  # the others read its file, where they share its disk
            features, mirrored = (
                picture_features(
                    encoder,
                    pictures,
                    device,
                    self.session.run.path / f"features{'_mirrored' * flip}.npy",
                    flipped=flip,
                )
                for flip in (False, True)
            )
        module = initialised(seed + 1, lambda: ICGAN(recipe, encoder.width))
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.session.train(
            Stage(
                "generator",
                module,
                [
                    {"params": list(module.generator.parameters()), "lr": recipe.generator_lr},
                    {"params": list(module.discriminator.parameters()), "lr": recipe.discriminator_lr},
                ],
                recipe.steps,
                NeighbourBatches(
                    self.open(recipe.resolution),
                    features,
                    mirrored if recipe.flip else None,
                    recipe.neighbours,
                    recipe.batch // recipe.accumulate,
                    seed,
                    device,
                    rank=fabric.global_rank,
                    world=fabric.world_size,
                ),
                seed,
                optimizer=functools.partial(torch.optim.Adam, betas=(0.0, 0.999), eps=1e-6),
                labels=None,
                turns=TURNS,
                accumulate=recipe.accumulate,
                schedule=constant,
                after_step=module.update_average,
            )
        )
        return module
