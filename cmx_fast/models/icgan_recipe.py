"""The numbers of a generator's training in two presets: IC-GAN's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cmx_fast.models.presets import Presets, require


@dataclass(frozen=True)
class ICGANRecipe(Presets):
    """Everything that decides what ``cmx train icgan`` computes.

    The defaults are the "paper" preset: Sound2Scene takes its generator as IC-GAN's code trains it on ImageNet. [R]:
    that code's configuration at 128 pixels; at 64 it has width 64, lr 1e-4 for both, batch 256. [O]: ours.
    """

    DEMO: ClassVar[dict[str, object]] = {
        "encoder": "small",
        "encoder_steps": 300,
        "resolution": 64,
        "moments": 4,
        "cache": True,
        "width": 16,
        "dim_z": 40,
        "condition": 64,
        "neighbours": 10,
        "generator_lr": 2e-4,
        "discriminator_lr": 1e-3,
        "batch": 32,
        "steps": 1800,
        "average": 0.99,
        "average_from": 100,
    }

    # Picture encoder: "resnet50" with SwAV's weights [P], or "small", trained here before the generator [O]
    encoder: str = "resnet50"
    encoder_steps: int = 0  # [O] of contrast between two moments of a video or two views of a picture
    encoder_batch: int = 128  # [O]
    encoder_lr: float = 2e-3  # [O]
    temperature: float = 0.2  # [O]
    hue: float = 0.5  # [O] share of the circle by which views' hues turn at most

    # Data
    resolution: int = 128  # [P] 64 or 128
    moments: int = 1  # [O] frames of each video
    cache: bool = False  # [O] keep all pictures in memory
    backend: str = "auto"  # [O] what decodes; "dali": on the GPU if there is one, or "pyav", "torchcodec"
    neighbours: int = 50  # [R]
    flip: bool = (
        True  # [R] mirror half of the pictures, and in half of the draws take a mirrored picture's features
    )

    # Networks
    width: int = 96  # [R]
    dim_z: int = 120  # [R]
    condition: int = 512  # [R]

    # Training
    generator_lr: float = 4e-5  # [R]
    discriminator_lr: float = 1e-4  # [R]
    batch: int = 2048  # [R] over all devices
    steps: int = 500_000  # [O] the code trains until FID stops falling
    average: float = 0.9999  # [R] decay of the generator's running average
    average_from: int = 20_000  # [R] steps before it starts

    def __post_init__(self) -> None:
        require(self.encoder in ("resnet50", "small"), self, "encoder", "resnet50 or small")
        require(self.encoder_steps >= 0, self, "encoder_steps", "at least 0")
        require(self.resolution in (64, 128), self, "resolution", "64 or 128")
        require(0 <= self.average < 1, self, "average", "in [0, 1)")
        require(self.average_from >= 0, self, "average_from", "at least 0")
        require(0 <= self.hue <= 0.5, self, "hue", "in [0, 0.5]")
        require(self.temperature > 0, self, "temperature", "above 0")
        for name in ("encoder_batch", "batch"):
            require(getattr(self, name) >= 2, self, name, "at least 2 (batch norm)")
        for name in ("moments", "neighbours", "steps", "condition"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
