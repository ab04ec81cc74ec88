"""``cmx train sound2scene``: sounds that land where a generator's pictures come from, from files to a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import SCENE_SETS, open_scenes
from cmx_fast.data.sets.selection import read_selection
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
from cmx_fast.train.loop import Interrupted, Stage, constant, run_stage, warmup_and_cosine
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
    new_fabric,
)
from cmx_fast.train.run_folder import RunFolder

#: Looks at the held-out scenes during training, for the curves; no weights are selected by them.
LOOKS = 8


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
        Path | None, typer.Option(help="SwAV's ResNet-50, if not where the generator's run had it.")
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
    fabric = new_fabric(precision, sync_bn, fsdp)
    encoder, _ = open_icgan(icgan, picture_encoder)
    moments = None if selection is None else read_selection(selection)
    train, test = (
        open_data(open_scenes(dataset, data, split), recipe, encoder.size, moments)
        for split in ("train", "test")
    )
    for split, of in (("train", train), ("held out", test)):
        if fabric.is_global_zero:
            print(f"{split}: {len(of)} scenes{selected(of)}{left_out(of.skipped)}", file=sys.stderr)
    if moments is not None:
        check_selection(selection, moments, train, test)
    if len(train) < recipe.batch:
        raise ValueError(
            f"{len(train)} scenes to train on are fewer than a batch of {recipe.batch}; --set batch=..."
        )
    run = RunFolder(
        out,
        {
            "command": "train sound2scene",
            "data": str(data),
            "dataset": dataset,
            "icgan": str(icgan),
            "picture_encoder": None if picture_encoder is None else str(picture_encoder),
            "selection": None if selection is None else str(selection),
            "preset": preset,
            "recipe": recipe.as_dict(),
            "seed": seed,
            "precision": precision,
            "compile": compile,
            "sync_bn": sync_bn,
            "fsdp": fsdp,
            "processes": fabric.world_size,
            "skipped": [(str(path), reason) for path, reason in (*train.skipped, *test.skipped)],
        },
        resume=resume,
        writer=fabric.is_global_zero,
    )
    features, held_out = (
        picture_features(
            encoder, of, fabric.device, run.path / f"features_{split}.pt" if fabric.is_global_zero else None
        )
        for split, of in (("train", train), ("test", test))
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

    def look() -> dict[str, float]:
        if not fabric.is_global_zero:
            return {}
        return held_out_loss(module, test, held_out)

    stage = Stage(
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
        look=look,
        look_every=max(1, steps // LOOKS),
    )
    try:
        run_stage(fabric, run, stage, compile=compile)
    except Interrupted as stopped:
        print(f"{stopped}; continue with the same command and --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    if fabric.is_global_zero:
        run.write_csv()
        evaluate_run(run.finished(), train, test)


def held_out_loss(module: Alignment, test: SceneData, features: Tensor) -> dict[str, float]:
    """The loss of the held-out scenes, all in one batch, and how often a sound's own picture is the nearest of all."""
    index, sounds = sound_features(module.sound_encoder, test)
    pictures = features.unflatten(0, (len(test), test.moments))[index, test.moments // 2]
    known = pictures.isfinite().all(1)
    sounds, pictures = sounds[known], pictures[known]
    return {
        "held_out_loss": float(alignment_loss(sounds, pictures, module.kind)),
        "sound_to_picture": float(own_rank(sounds, pictures).eq(0).double().mean()),
    }
