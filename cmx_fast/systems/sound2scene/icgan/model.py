"""Trains an instance-conditioned generator by hinge losses against pictures of an instance's neighbourhood.

Casanova et al., "Instance-Conditioned GAN", NeurIPS 2021, section 3.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cmx_fast.networks.biggan import Discriminator, Generator, discriminator_loss, generator_loss
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.train.trainable import Batch

TURNS = ("discriminator", "generator")


class ICGAN(nn.Module):
    """Generator, discriminator, and the generator's running average, which makes the pictures after training.

    A batch has "instance" (B, features), unit features of a picture, and "picture" (B, 3, S, S) in [-1, 1], one of that
    picture's neighbours.
    """

    updates: Tensor

    def __init__(self, recipe: ICGANRecipe, features: int):
        super().__init__()
        self.recipe = recipe
        self.generator = new_generator(recipe, features)
        self.discriminator = Discriminator(recipe.resolution, recipe.width, features)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> ICGAN:
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, batch: Batch, turn: str) -> Batch:
        """The discriminator's logits (B,) of "fake" pictures and, in its own turn, of "real" ones."""
        instance, real = batch["instance"], batch["picture"]
        own = turn == "discriminator"
        self.discriminator.requires_grad_(own)
        noise = torch.randn(len(instance), self.generator.dim_z, device=instance.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not own):
            fake = self.generator(noise, instance)
        if not own:
            return {"fake": self.discriminator(fake, instance)}
        logits = self.discriminator(torch.cat([real.to(fake.dtype), fake]), torch.cat([instance, instance]))
        return dict(zip(("real", "fake"), logits.chunk(2), strict=True))

    def losses(self, outputs: Batch, batch: Batch, turn: str) -> Batch:
        if turn == "discriminator":
            loss = discriminator_loss(outputs["real"], outputs["fake"])
        else:
            loss = generator_loss(outputs["fake"])
        return {"loss": loss, turn: loss}

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the running average of weights and norms' statistics by a step; before it starts, copy them."""
        self.updates += 1
        rate = 1 - self.recipe.average if self.updates > self.recipe.average_from else 1.0
        for value, now in zip(
            self.average.state_dict().values(), self.generator.state_dict().values(), strict=True
        ):
            value.lerp_(now, rate)


def new_generator(recipe: ICGANRecipe, features: int) -> Generator:
    """A generator of the recipe's size with fresh weights."""
    return Generator(recipe.resolution, recipe.width, recipe.dim_z, features, recipe.condition)
