"""``cmx evaluate c2l``: a finished run's models on held-out pictures: table, results.json and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from cmx_fast.evaluate import segmentation
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.evaluation import EXAMPLES, Evaluation, new_model, open_split, segment, table
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.report import write_report
from cmx_fast.train.options import RunData, SkipBad, default_device
from cmx_fast.train.run_folder import FinishedRun, RunFolder


def evaluate_run(run: FinishedRun, pictures: Pictures) -> Evaluation:
    """Segment the pictures with every model of the run; print the table, write results.json and report.html."""
    recipe = run.recipe(C2LRecipe)
    examples = list(range(0, len(pictures), max(1, len(pictures) // EXAMPLES)))[:EXAMPLES]
    scores = SeedScores(run.config["models"])
    shown: dict[str, Tensor] = {}
    for name, seed in run.models():
        model = new_model(name, recipe).to(pictures.device)
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))
        counts, labels = segment(model, pictures, seed, examples)
        scores.add(name, segmentation.scores(counts))
        shown.setdefault(name, segmentation.match(counts)[labels])
    largest = float(counts.sum(0).max() / counts.sum())
    evaluation = Evaluation(scores, largest, examples, shown)
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation, len(pictures)))
    console.print(f"report: {write_report(run, evaluation, pictures)}")
    return evaluation


def evaluate_c2l(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train c2l.")],
    data: RunData = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run on the test split: table, results.json and report.html."""
    finished = RunFolder.open_finished(run, "train c2l")
    root, recipe = data or Path(finished.config["data"]), finished.recipe(C2LRecipe)
    evaluate_run(finished, open_split(root, "test", recipe, default_device(), skip_bad=skip_bad))
