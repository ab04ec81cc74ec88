"""``cmx evaluate c2l``: a finished run's models on held-out pictures: table, results.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from cmx_fast.evaluate import segmentation
from cmx_fast.networks.weights import load, read_json
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.evaluation import EXAMPLES, Evaluation, new_model, open_split, segment, table
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.report import write_report
from cmx_fast.train.finished import finished_run
from cmx_fast.train.options import RunData, SkipBad, default_device


def evaluate_run(run: Path, pictures: Pictures) -> Evaluation:
    """Segment the pictures with every model of the run, print the table, write results.json and report.html."""
    config = read_json(run / "config.json")
    recipe = C2LRecipe.stored(config["recipe"], run / "config.json")
    examples = list(range(0, len(pictures), max(1, len(pictures) // EXAMPLES)))[:EXAMPLES]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in config["models"]}
    shown: dict[str, Tensor] = {}
    for name in config["models"]:
        for seed in config["seeds"]:
            model = new_model(name, recipe).to(pictures.device)
            model.load_state_dict(load(run / f"seed{seed}" / f"{name}.pt")["module"])
            counts, labels = segment(model, pictures, seed, examples)
            scores[name].append(segmentation.scores(counts))
            shown.setdefault(name, segmentation.match(counts)[labels])
    largest = float(counts.sum(0).max() / counts.sum())
    evaluation = Evaluation(scores, largest, examples, shown)
    (run / "results.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    console = Console()
    console.print(table(evaluation, len(pictures)))
    console.print(f"report: {write_report(run, config, evaluation, pictures)}")
    return evaluation


def evaluate_c2l(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train c2l.")],
    data: RunData = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run on the test split: table, results.json and report.html."""
    config = finished_run(run, "train c2l")
    device = default_device()
    recipe = C2LRecipe.stored(config["recipe"], run / "config.json")
    evaluate_run(run, open_split(data or Path(config["data"]), "test", recipe, device, skip_bad=skip_bad))
