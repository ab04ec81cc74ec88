"""``cmx train sound2scene``: the sound encoder of Sound2Scene, from files to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import SCENE_SETS, open_scenes
from cmx_fast.data.sets.selection import read_selection
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.sound2scene.checkpoints import new_sound_encoder, open_icgan
from cmx_fast.systems.sound2scene.data import SoundBatches
from cmx_fast.systems.sound2scene.evaluate import evaluate_run
from cmx_fast.systems.sound2scene.model import Alignment, alignment_loss
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.sound_features import (
    check_selection,
    open_data,
    own_rank,
    selected,
    sound_features,
)
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage, constant, warmup_and_cosine
from cmx_fast.train.options import (
    FSDP,
    Compile,
    Out,
    Precision,
    Preset,
    Resume,
    Seed,
    Set,
    SyncBN,
    changes,
)
from cmx_fast.train.session import Session, require_a_batch

#: Evaluations on the held-out scenes during training, for the curves; no weights are selected by them.
EVALUATIONS = 8


def train_sound2scene(
    data: Annotated[Path, typer.Option(help="Pictures with sound, e.g. from cmx simulate clips.")],
    icgan: Annotated[Path, typer.Option(help="A cmx train icgan folder, or IC-GAN's G_ema*.pth.")],
    dataset: Annotated[
        str,
        typer.Option(
            help=f"Layout of the data: {', '.join(name for name in SCENE_SETS if name != 'pictures')}."
        ),
    ] = "vggsound",
    out: Out = Path("runs/sound2scene"),
    preset: Preset = "paper",
    picture_encoder: Annotated[
        Path | None,
        typer.Option(help="Picture encoder's weights, if not where the generator's run had them."),
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(help="JSON of each video's best frames: cmx select, or the authors'.")
    ] = None,
    seed: Seed = 0,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    resume: Resume = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train Sound2Scene's sound encoder against a fixed picture encoder, generate from held-out sounds, report.

    The generator and the picture encoder are those of cmx train icgan. Scenes that are broken or silent are left out
    and named.
    """
    if dataset == "pictures":
        raise ValueError("dataset = pictures has no sound")
    recipe = Sound2SceneRecipe.preset(preset, **changes(set, Sound2SceneRecipe))
    session = Session(
        "train sound2scene",
        recipe,
        preset=preset,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
    )
    encoder, _ = open_icgan(icgan, picture_encoder)
    moments = None if selection is None else read_selection(selection)
    train, test = (
        open_data(open_scenes(dataset, data, split), recipe, encoder.size, moments)
        for split in ("train", "test")
    )
    for split, scenes in (("train", train), ("held out", test)):
        session.say(f"{split}: {len(scenes)} scenes{selected(scenes)}{left_out(scenes.skipped)}")
    if moments is not None:
        check_selection(selection, moments, train, test)
    require_a_batch(len(train), recipe.batch, "scenes")
    config = {
        "data": str(data),
        "dataset": dataset,
        "icgan": str(icgan),
        "picture_encoder": None if picture_encoder is None else str(picture_encoder),
        "selection": None if selection is None else str(selection),
        "seed": seed,
    }
    with session.recording(out, config, resume=resume, splits=(train, test)) as run:
        train_sounds(session, encoder, recipe, seed, train, test)
    if session.fabric.is_global_zero:
        evaluate_run(run.finished(), train, test)


def train_sounds(
    session: Session,
    encoder: PictureEncoder | VisualEncoder,
    recipe: Sound2SceneRecipe,
    seed: int,
    train: SceneData,
    test: SceneData,
) -> None:
    """Compute the pictures' features, then train the sound encoder on them."""
    fabric = session.fabric
    features, held_out = (
        picture_features(
            encoder,
            scenes,
            fabric.device,
            session.run.path / f"features_{split}.npy" if fabric.is_global_zero else None,
        )
        for split, scenes in (("train", train), ("test", test))
    )
    if recipe.positive and (features < 0).any():
        session.say(
            "the pictures' features have negative values, which a sound encoder that ends in a ReLU never reaches: "
            "--set positive=false"
        )
    module = initialised(seed, lambda: Alignment(new_sound_encoder(recipe, encoder.width), recipe.loss))
    batches = SoundBatches(
        train,
        features,
        recipe.batch // fabric.world_size,
        seed,
        fabric.device,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    steps = recipe.epochs * batches.steps_per_epoch

    def evaluate() -> dict[str, float]:
        if not fabric.is_global_zero:
            return {}
        return held_out_loss(module, test, held_out)

    session.train(
        Stage(
            "sounds",
            module,
            [{"params": list(module.parameters()), "lr": recipe.lr}],
            steps,
            batches,
            seed,
            weight_decay=recipe.weight_decay,
            optimizer=torch.optim.Adam,
            labels=("picture",),
            schedule=warmup_and_cosine if recipe.cosine else constant,
            evaluation=evaluate,
            evaluate_every=max(1, steps // EVALUATIONS),
        )
    )


def held_out_loss(module: Alignment, test: SceneData, features: Tensor) -> dict[str, float]:
    """The loss of all held-out scenes in one batch, and the share of sounds whose nearest picture is their own."""
    index, sounds = sound_features(module.sound_encoder, test)
    pictures = features.unflatten(0, (len(test), test.moments))[index, test.moments // 2]
    readable = pictures.isfinite().all(1)
    sounds, pictures = sounds[readable], pictures[readable]
    return {
        "held_out_loss": float(alignment_loss(sounds, pictures, module.kind)),
        "sound_to_picture": float(own_rank(sounds, pictures).eq(0).double().mean()),
    }
