"""``cmx train icgan``; what trains is imported once it is called."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.layouts import layout_of
from cmx_fast.data.sets.names import SCENES
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.options import (
    BatchSize,
    Compile,
    Device,
    Encoder,
    Loggers,
    Out,
    Precision,
    Preset,
    Resume,
    Seed,
    Set,
    Workers,
    layout,
)
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.train.settings import changes


def train_icgan(
    data: Annotated[Path, typer.Option(help="Pictures or videos.")],
    dataset: Annotated[str | None, layout(SCENES)] = None,
    out: Out = Path("runs/icgan"),
    preset: Preset = "paper",
    picture_encoder: Annotated[
        Path | None, typer.Option(help="SwAV's ResNet-50 (swav_800ep_pretrain.pth.tar).")
    ] = None,
    encoder: Encoder = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    set: Annotated[Set, ICGANRecipe] = [],  # noqa: B006
) -> None:
    """Train an instance-conditioned generator (IC-GAN) on pictures without labels: Sound2Scene's first step.

    Under torchrun each process takes its share of every batch; --set accumulate=N divides what a GPU holds by N.
    The picture encoder is SwAV's ResNet-50 from a file, any other pretrained one by --encoder, or with --set
    encoder=small, as in the demo preset, a small one that is trained first. Pictures that are broken are left out and
    named.

    --batch-size is the generator's; the small encoder has encoder_batch. The learning rates are generator_lr,
    discriminator_lr and encoder_lr.
    """
    recipe = ICGANRecipe.preset(preset, **changes(set, ICGANRecipe, batch=batch_size))
    dataset = layout_of(dataset, data, SCENES)
    if encoder is not None:
        if picture_encoder is not None:
            raise ValueError("give --encoder or --picture-encoder, not both: each is the picture encoder")
        recipe = dataclasses.replace(recipe, encoder="pretrained")
    elif recipe.encoder == "pretrained":
        raise ValueError("encoder = pretrained needs its name: --encoder NAME or NAME=FILE")
    elif (recipe.encoder == "resnet50") != (picture_encoder is not None):
        raise ValueError(
            "encoder = resnet50 needs its weights, --picture-encoder swav_800ep_pretrain.pth.tar, or another encoder, "
            "e.g. --encoder efficientnet-lite0; encoder = small is trained here and takes none"
        )

    from cmx_fast.data.sets.scenes import open_scenes
    from cmx_fast.networks.visual_encoders import open_visual_encoder
    from cmx_fast.systems.sound2scene.icgan.train import Training
    from cmx_fast.train.session import Session

    pretrained = None if encoder is None else open_visual_encoder(encoder)
    session = Session(
        "train icgan",
        recipe,
        preset=preset,
        device=device,
        precision=precision,
        compile=compile,
        sync_bn=False,
        loggers=logger,
        players=True,
    )
    world = session.fabric.world_size
    if recipe.batch % (world * recipe.accumulate):
        raise ValueError(
            f"batch = {recipe.batch} can't be divided by {world} processes and accumulate = {recipe.accumulate} passes"
        )
    if recipe.encoder == "small" and world > 1:
        raise ValueError(
            "encoder = small is trained in one process; give several a pretrained one, e.g. --encoder "
            "efficientnet-lite0"
        )
    scenes = open_scenes(dataset, data, "train")
    session.say(f"train: {len(scenes)} scenes{left_out(scenes.skipped)}")
    config = {
        "data": str(data),
        "dataset": dataset,
        "picture_encoder": None if picture_encoder is None else str(picture_encoder.absolute()),
        "encoder": encoder,
        "encoder_fingerprint": None if pretrained is None else pretrained.fingerprint(),
        "seed": seed,
    }
    with session.recording(out, config, resume=resume, splits=(scenes,)):
        training = Training(session, recipe, scenes, seed, workers)
        training.train_generator(pretrained or training.train_encoder(picture_encoder))
