"""``cmx train csir`` and ``cmx evaluate csir``; what trains and measures is imported once one is called."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.recordings import check_split, left_out
from cmx_fast.options import (
    FSDP,
    Compile,
    Device,
    Encoder,
    EncoderFile,
    FirstSeed,
    Loggers,
    Out,
    Precision,
    Preset,
    Resume,
    RunData,
    Seeds,
    Set,
    SkipBad,
    SyncBN,
    Workers,
    choose_models,
)
from cmx_fast.systems.csir.options import HELD_OUT, NAMES, BatchSize, LearningRate, Models, Speech, Split
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.settings import changes


def train_csir(
    data: Annotated[
        Path, typer.Option(help="Data in the Image2Reverb layout, e.g. from cmx simulate rooms.")
    ],
    out: Out = Path("runs/csir"),
    preset: Preset = "paper",
    seed: FirstSeed = 0,
    seeds: Seeds = 1,
    model: Models = [*NAMES],  # noqa: B006
    places365: Annotated[
        Path | None,
        typer.Option(
            help="resnet50_places365.pth.tar; without it the image encoder is first trained on the spaces."
        ),
    ] = None,
    encoder: Encoder = None,
    speech: Speech = None,
    split: Split = "test",
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    precision: Precision = "fp32",
    compile: Compile = False,
    sync_bn: SyncBN = False,
    fsdp: FSDP = False,
    logger: Loggers = [],  # noqa: B006
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Annotated[Set, CSIRRecipe] = [],  # noqa: B006
) -> None:
    """Train CSIR and its baselines on image-speech pairs, measure them on held-out pairs, write report.html.

    With --encoder the image encoder is a pretrained one that stays as it is: its features of all pictures, at the size
    that it was trained at and not augmented, are computed once and kept, and no pixels are needed after that.
    """
    check_split(split, HELD_OUT)
    models = choose_models(model, NAMES)
    recipe = CSIRRecipe.preset(preset, **changes(set, CSIRRecipe, cross_batch=batch_size, cross_lr=lr))
    if encoder is not None and places365 is not None:
        raise ValueError("give --encoder or --places365, not both: each is the image encoder")
    if encoder is None and recipe.image_encoder == "pretrained":
        raise ValueError("image_encoder = pretrained needs its name: --encoder NAME or NAME=FILE")

    from cmx_fast.networks.visual_encoders import open_visual_encoder
    from cmx_fast.systems.csir.batches import check_shares
    from cmx_fast.systems.csir.evaluate import evaluate_run
    from cmx_fast.systems.csir.evaluation import open_split
    from cmx_fast.systems.csir.model import FrozenImageEncoder, image_encoder, load_places365
    from cmx_fast.systems.csir.train import Training
    from cmx_fast.train.session import Session

    frozen = None
    if encoder is not None:
        pretrained = open_visual_encoder(encoder)
        recipe = dataclasses.replace(recipe, image_encoder="pretrained", image_size=pretrained.size)
        frozen = FrozenImageEncoder(pretrained)
    if places365 is not None:
        load_places365(
            image_encoder(recipe.image_encoder, recipe.attention), places365
        )  # fails before the data are read
    session = Session(
        "train csir",
        recipe,
        preset=preset,
        device=device,
        precision=precision,
        compile=compile,
        sync_bn=sync_bn,
        fsdp=fsdp,
        loggers=logger,
    )
    check_shares(recipe, session.fabric.world_size)
    opened = functools.partial(
        open_split,
        data,
        recipe=recipe,
        device=session.fabric.device,
        speech=speech,
        skip_bad=skip_bad,
        workers=workers,
    )
    train = opened("train")
    spaces = train.dataset.spaces
    test = opened(split, spaces=spaces)
    for part, pairs in (("train", train), (split, test)):
        hidden = f"; {pairs.hidden_rt60} of unknown RT60, left out of its loss" if pairs.hidden_rt60 else ""
        session.say(
            f"{part}: {len(pairs.dataset.pairs)} pairs, {len(pairs)} utterances, {len(spaces)} spaces"
            + hidden
            + left_out(pairs.dataset.skipped)
        )
    if places365 is None and frozen is None:
        session.say(
            "image encoder: no --places365 weights nor --encoder, so it first learns to name the spaces from pictures"
        )
    numbers = range(seed, seed + seeds)
    config = {
        "data": str(data),
        "speech": None if speech is None else str(speech),
        "seeds": list(numbers),
        "models": models,
        "split": split,
        "spaces": spaces,
        "places365": None if places365 is None else str(places365),
        "encoder": encoder,
        "encoder_fingerprint": None if frozen is None else frozen.fingerprint(),
        "skip_bad": skip_bad,
    }
    with session.recording(out, config, resume=resume) as run:
        training = Training(session, recipe, train, test, frozen or places365)
        for number in numbers:
            training.train_seed(number, models)
    if session.fabric.is_global_zero:
        evaluate_run(run.finished(), test)


def evaluate_csir(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train csir.")],
    data: RunData = None,
    speech: Speech = None,
    split: Split = "test",
    encoder_file: EncoderFile = None,
    device: Device = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run on held-out pairs: table, results.json and report.html."""
    check_split(split, HELD_OUT)

    from cmx_fast.systems.csir.evaluate import evaluate_run
    from cmx_fast.systems.csir.evaluation import open_split
    from cmx_fast.train.fabric import chosen_device
    from cmx_fast.train.run_folder import RunFolder

    finished = RunFolder.open_finished(run, "train csir")
    test = open_split(
        data or Path(finished.config["data"]),
        split,
        finished.recipe(CSIRRecipe),
        chosen_device(device),
        spaces=finished.config["spaces"],
        speech=speech,
        skip_bad=skip_bad,
    )
    evaluate_run(finished, test, encoder_file)
