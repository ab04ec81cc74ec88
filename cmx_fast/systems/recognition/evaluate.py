"""``cmx evaluate segment``, ``classify`` and ``detect``: a finished run's networks on held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.options import EncoderFile, RunData, SkipBad
from cmx_fast.systems.recognition.attentions import CLASSIFY, DETECT, SEGMENT
from cmx_fast.systems.recognition.data import MAPS, Data
from cmx_fast.systems.recognition.evaluation import (
    EXAMPLES,
    Cost,
    Evaluation,
    Measured,
    cost,
    measure,
    of_classes,
    table,
)
from cmx_fast.systems.recognition.networks import new_model
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.systems.recognition.report import write_report
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.run_folder import FinishedRun, RunFolder

Run = Annotated[Path, typer.Option(help="Run folder of cmx train.")]
Split = Annotated[str, typer.Option(help="Pictures to evaluate on: test, or val to choose settings by.")]


def evaluate_run(run: FinishedRun, data: Data, split: str) -> Evaluation:
    """Predict the pictures with every network of the run; print the table, write results.json and report.html."""
    pictures = data.pictures(split)
    examples = list(range(0, len(pictures), max(1, len(pictures) // EXAMPLES)))[:EXAMPLES]
    scores = SeedScores(run.config["models"])
    measured: dict[str, list[Measured]] = {}
    costs: dict[str, Cost] = {}
    for name, seed in run.models():
        model = new_model(data.task, data.plan(name, len(pictures.class_names)))
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))
        model.to(data.device)
        measured.setdefault(name, []).append(measure(model, data.examples(split, name), examples))
        scores.add(name, measured[name][-1].figures)
        if name not in costs:
            rows = torch.arange(data.recipe.batch) % len(pictures)
            costs[name] = cost(model, next(iter(data.examples(split, name).load([rows]))))
    evaluation = Evaluation(
        data.task,
        split,
        scores,
        {name: of_classes(data.task, seeds) for name, seeds in measured.items()},
        costs,
        measured[name][0].largest,
        examples,
        {name: seeds[0].shown for name, seeds in measured.items()},
    )
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation, len(pictures), data.recipe.batch))
    console.print(f"report: {write_report(run, evaluation, pictures)}")
    return evaluation


def evaluate_segment(
    run: Run,
    data: RunData = None,
    split: Split = "test",
    encoder_file: EncoderFile = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run of cmx train segment: table, results.json and report.html."""
    _evaluate(SEGMENT, run, data, split, encoder_file, skip_bad)


def evaluate_classify(
    run: Run,
    data: RunData = None,
    split: Split = "test",
    encoder_file: EncoderFile = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run of cmx train classify: table, results.json and report.html."""
    _evaluate(CLASSIFY, run, data, split, encoder_file, skip_bad)


def evaluate_detect(
    run: Run,
    data: RunData = None,
    split: Split = "test",
    encoder_file: EncoderFile = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run of cmx train detect: table, results.json and report.html."""
    _evaluate(DETECT, run, data, split, encoder_file, skip_bad)


def _evaluate(
    task: str, run: Path, data: Path | None, split: str, encoder_file: Path | None, skip_bad: bool
) -> None:
    if split not in ("val", "test"):
        raise ValueError(f"split must be val or test; got {split!r}")
    finished = RunFolder.open_finished(run, f"train {task}")
    config = finished.config
    encoder = run_encoder(finished, encoder_file)
    assert encoder is not None
    opened = Data(
        task,
        config["dataset"],
        data or Path(config["data"]),
        finished.recipe(RecognitionRecipe),
        encoder,
        default_device(),
        features=Path(config["features"] or run / MAPS) if data is None else None,
        skip_bad=skip_bad,
    )
    if opened.pictures(split).class_names != config["classes"]:
        raise ValueError(
            f"{opened.root} has the classes {', '.join(opened.pictures(split).class_names[:5])}, ...; the run was "
            f"trained on {', '.join(config['classes'][:5])}, ..."
        )
    evaluate_run(finished, opened, split)
