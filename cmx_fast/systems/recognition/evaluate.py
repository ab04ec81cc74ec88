"""Evaluates a finished run's networks on held-out pictures."""

from __future__ import annotations

import torch
from rich.console import Console

from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.systems.recognition.data import Data
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
from cmx_fast.systems.recognition.report import write_report
from cmx_fast.train.run_folder import FinishedRun


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
