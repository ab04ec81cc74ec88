"""The numbers of a generator's training in two presets: IC-GAN's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import Amount, Count, Hue, OneOf, Positive, Range, Several, ShareBelowOne, Size


@dataclass(frozen=True)
class ICGANRecipe(Presets):
    """Every number of ``cmx train icgan``.

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

    # Picture encoder
    #: "resnet50" with SwAV's weights [P]; "small", trained here before the generator [O]; "pretrained", that of
    #: --encoder [O].
    encoder: Annotated[str, OneOf("resnet50", "small", "pretrained")] = "resnet50"
    encoder_steps: Size = 0  # [O] of contrastive training on two moments of a video or two views of a picture
    encoder_batch: Several = 128  # [O]
    encoder_lr: Amount = 2e-3  # [O]
    temperature: Positive = 0.2  # [O]
    hue: Hue = 0.5  # [O] the largest share of the circle by which views' hues turn

    # Data
    resolution: Annotated[int, OneOf(64, 128)] = 128  # [P] 64 or 128
    moments: Count = 1  # [O] frames of each video
    cache: bool = False  # [O] keep all pictures in memory
    backend: str = "auto"  # [O] the decoder; "dali": on the GPU if there is one, or "pyav", "torchcodec"
    neighbours: Count = 50  # [R]
    flip: bool = (
        True  # [R] mirror half of the pictures, and in half of the draws take a mirrored picture's features
    )

    # Networks
    width: Annotated[int, Range(8)] = 96  # [R]
    dim_z: Count = 120  # [R]
    condition: Count = 512  # [R]

    # Training
    generator_lr: Amount = 4e-5  # [R]
    discriminator_lr: Amount = 1e-4  # [R]
    batch: Several = 2048  # [R] over all devices and passes
    accumulate: Count = (
        1  # [O] passes per step of each player, of whose gradients the mean is taken: each has
    )
    # batch / accumulate pictures over all devices, which is what batch norm sees of them on one
    steps: Count = 500_000  # [O] the code trains until FID stops falling
    average: ShareBelowOne = 0.9999  # [R] decay of the generator's running average
    average_from: Size = 20_000  # [R] steps before it starts
