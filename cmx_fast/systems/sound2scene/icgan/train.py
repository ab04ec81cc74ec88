"""``cmx train icgan``: a generator of pictures from the features of pictures."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import torch
import typer

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import SCENE_SETS, Scenes, open_scenes
from cmx_fast.networks.picture_encoder import PictureEncoder, load_swav
from cmx_fast.networks.visual_encoders import VisualEncoder, open_visual_encoder
from cmx_fast.options import Compile, Encoder, Out, Precision, Preset, Resume, Seed, Set
from cmx_fast.systems.sound2scene.icgan.data import NeighbourBatches, ViewBatches
from cmx_fast.systems.sound2scene.icgan.model import ICGAN, TURNS
from cmx_fast.systems.sound2scene.icgan.pretraining import PictureContrast
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant
from cmx_fast.train.session import Session
from cmx_fast.train.settings import changes


def train_icgan(
    data: Annotated[Path, typer.Option(help="Pictures or videos.")],
    dataset: Annotated[str, typer.Option(help=f"Layout of the data: {', '.join(SCENE_SETS)}.")] = "pictures",
    out: Out = Path("runs/icgan"),
    preset: Preset = "paper",
    picture_encoder: Annotated[
        Path | None, typer.Option(help="SwAV's ResNet-50 (swav_800ep_pretrain.pth.tar).")
    ] = None,
    encoder: Encoder = None,
    seed: Seed = 0,
    precision: Precision = "fp32",
    compile: Compile = False,
    resume: Resume = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train an instance-conditioned generator (IC-GAN) on pictures without labels: Sound2Scene's first step.

    Under torchrun each process takes its share of every batch; --set accumulate=N divides what a GPU holds by N.
    The picture encoder is SwAV's ResNet-50 from a file, any other pretrained one by --encoder, or with --set
    encoder=small, as in the demo preset, a small one that is trained first. Pictures that are broken are left out and
    named.
    """
    recipe = ICGANRecipe.preset(preset, **changes(set, ICGANRecipe))
    pretrained = None
    if encoder is not None:
        if picture_encoder is not None:
            raise ValueError("give --encoder or --picture-encoder, not both: each is the picture encoder")
        recipe = dataclasses.replace(recipe, encoder="pretrained")
        pretrained = open_visual_encoder(encoder)
    elif recipe.encoder == "pretrained":
        raise ValueError("encoder = pretrained needs its name: --encoder NAME or NAME=FILE")
    elif (recipe.encoder == "resnet50") != (picture_encoder is not None):
        raise ValueError(
            "encoder = resnet50 needs its weights, --picture-encoder swav_800ep_pretrain.pth.tar, or another encoder, "
            "e.g. --encoder efficientnet-lite0; encoder = small is trained here and takes none"
        )
    session = Session(
        "train icgan",
        recipe,
        preset=preset,
        precision=precision,
        compile=compile,
        sync_bn=False,
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
        training = Training(session, recipe, scenes, seed)
        training.train_generator(pretrained or training.train_encoder(picture_encoder))


class Training:
    """The two stages of a run: the picture encoder, where it is small, and the generator."""

    def __init__(self, session: Session, recipe: ICGANRecipe, scenes: Scenes, seed: int):
        self.session, self.recipe, self.seed = session, recipe, seed
        self.scenes, self.opened = scenes, dict[int, SceneData]()

    def open(self, size: int) -> SceneData:
        """The scenes with pictures of this size; opened once, and watched."""
        if size not in self.opened:
            recipe = self.recipe
            self.opened[size] = SceneData(
                self.scenes, size=size, moments=recipe.moments, backend=recipe.backend, cache=recipe.cache
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
