"""``cmx train segment``, ``classify`` and ``detect``: attention modules from pictures to one table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.labelled_pictures import LabelledPictures
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.networks.visual_encoders import open_visual_encoder
from cmx_fast.options import Encoder, Out, Precision, Preset, Resume, Seeds, Set, SkipBad
from cmx_fast.systems.recognition.attentions import CLASSIFY, DETECT, SEGMENT, choose_attentions, of_task
from cmx_fast.systems.recognition.classifiers import ProposalStart, ScaleClassifier
from cmx_fast.systems.recognition.data import LAYOUTS, MAPS, Data, TrainingBatches
from cmx_fast.systems.recognition.evaluate import evaluate_run
from cmx_fast.systems.recognition.evaluation import measure
from cmx_fast.systems.recognition.networks import new_model
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.train.initial import initialised
from cmx_fast.train.loop import Stage
from cmx_fast.train.session import Session, require_a_batch
from cmx_fast.train.settings import changes

Features = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps a fixed encoder's maps for several runs; default: the run folder's."
    ),
]


def train_segment(
    data: Annotated[Path, typer.Option(help="Pictures with masks.")],
    encoder: Encoder,
    dataset: Annotated[
        str, typer.Option(help=f"Layout of the data: {', '.join(LAYOUTS[SEGMENT])}.")
    ] = "folder",
    attention: Annotated[
        list[str], typer.Option(help=f"Module: {', '.join(of_task(SEGMENT))}, or all; repeatable.")
    ] = ["none"],  # noqa: B006
    features: Features = None,
    out: Out = Path("runs/segment"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    precision: Precision = "fp32",
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train networks to segment pictures, one per attention module, evaluate them, write report.html."""
    _train(
        SEGMENT,
        data=data,
        encoder=encoder,
        dataset=dataset,
        attention=attention,
        features=features,
        out=out,
        preset=preset,
        seeds=seeds,
        precision=precision,
        resume=resume,
        skip_bad=skip_bad,
        set=set,
    )


def train_classify(
    data: Annotated[Path, typer.Option(help="Pictures of classes.")],
    encoder: Encoder,
    dataset: Annotated[
        str, typer.Option(help=f"Layout of the data: {', '.join(LAYOUTS[CLASSIFY])}.")
    ] = "folder",
    attention: Annotated[
        list[str], typer.Option(help=f"Module: {', '.join(of_task(CLASSIFY))}, or all; repeatable.")
    ] = ["none"],  # noqa: B006
    features: Features = None,
    out: Out = Path("runs/classify"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    precision: Precision = "fp32",
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train networks to classify pictures, one per attention module, evaluate them, write report.html."""
    _train(
        CLASSIFY,
        data=data,
        encoder=encoder,
        dataset=dataset,
        attention=attention,
        features=features,
        out=out,
        preset=preset,
        seeds=seeds,
        precision=precision,
        resume=resume,
        skip_bad=skip_bad,
        set=set,
    )


def train_detect(
    data: Annotated[Path, typer.Option(help="Pictures with boxes around objects.")],
    encoder: Encoder,
    dataset: Annotated[str, typer.Option(help=f"Layout of the data: {', '.join(LAYOUTS[DETECT])}.")] = "voc",
    attention: Annotated[
        list[str], typer.Option(help=f"Module: {', '.join(of_task(DETECT))}, or all; repeatable.")
    ] = ["all"],  # noqa: B006
    features: Features = None,
    out: Out = Path("runs/detect"),
    preset: Preset = "paper",
    seeds: Seeds = 1,
    precision: Precision = "fp32",
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Train small detectors, one per kind of hard attention, evaluate them, write report.html."""
    _train(
        DETECT,
        data=data,
        encoder=encoder,
        dataset=dataset,
        attention=attention,
        features=features,
        out=out,
        preset=preset,
        seeds=seeds,
        precision=precision,
        resume=resume,
        skip_bad=skip_bad,
        set=set,
    )


def _train(
    task: str,
    *,
    data: Path,
    encoder: str | None,
    dataset: str,
    attention: list[str],
    features: Path | None,
    out: Path,
    preset: str,
    seeds: int,
    precision: str,
    resume: bool,
    skip_bad: bool,
    set: list[str],
) -> None:
    models = choose_attentions(attention, task)
    recipe = RecognitionRecipe.preset(preset, **changes(set, RecognitionRecipe))
    session = Session(f"train {task}", recipe, preset=preset, precision=precision)
    if encoder is None:
        raise ValueError("--encoder names the pretrained encoder, e.g. efficientnet-lite0: docs/encoders.md")
    network = open_visual_encoder(encoder)
    splits = Data(
        task,
        dataset,
        data,
        recipe,
        network,
        session.fabric.device,
        features=features or out / MAPS,
        skip_bad=skip_bad,
    )
    opened = {split: splits.pictures(split) for split in ("train", "val", "test")}
    for split, pictures in opened.items():
        own = splits.own_split(split)
        called = "" if own == split else f", the split {own} of these data"
        session.say(f"{split}: {len(pictures)} pictures{called}{left_out(pictures.skipped)}")
    train = opened["train"]
    require_a_batch(len(train), recipe.batch, "pictures")
    if "two-level" in models and not (isinstance(train, LabelledPictures) and train.has_boxes):
        if "two-level" in attention:
            raise ValueError(
                f"attention two-level learns from boxes which patches show the object; {data} has none, --dataset "
                "cub has"
            )
        models.remove("two-level")
        session.say("two-level is left out: it needs boxes around the objects, as --dataset cub has")
    config = {
        "data": str(data),
        "dataset": dataset,
        "seeds": list(range(seeds)),
        "models": models,
        "classes": train.class_names,
        "encoder": encoder,
        "encoder_fingerprint": network.fingerprint(),
        "features": None if features is None else str(features),
        "skip_bad": skip_bad,
    }
    with session.recording(out, config, resume=resume, splits=tuple(dict.fromkeys(opened.values()))) as run:
        for seed in range(seeds):
            for name in models:
                _train_model(session, splits, name, seed)
    evaluate_run(run.finished(), splits, "test")


def _train_model(session: Session, splits: Data, name: str, seed: int) -> None:
    """Train the network with one attention module from a seed, or load it where the run has finished it."""
    recipe, stage = splits.recipe, f"seed{seed}/{name}"
    classes = len(splits.pictures("train").class_names)
    model = initialised(seed, lambda: new_model(splits.task, splits.plan(name, classes)))
    examples, held_out = (splits.examples(split, name) for split in ("train", "val"))
    batches = TrainingBatches(examples, recipe, seed)
    if isinstance(model, ScaleClassifier):
        start = ProposalStart(model)
        session.train(
            Stage(
                f"{stage}-proposals",
                start,
                [{"params": list(model.scales.proposals.parameters()), "lr": recipe.lr}],
                recipe.proposal_epochs * batches.steps_per_epoch,
                batches,
                seed,
                labels=None,
            )
        )
    steps = recipe.epochs * batches.steps_per_epoch
    session.train(
        Stage(
            stage,
            model,
            model.groups(),
            steps,
            batches,
            seed,
            weight_decay=recipe.weight_decay,
            turns=ScaleClassifier.TURNS if isinstance(model, ScaleClassifier) else (),
            labels=None,
            evaluation=lambda: measure(model, held_out).figures,
            evaluate_every=max(1, steps // recipe.evaluations),
        )
    )
