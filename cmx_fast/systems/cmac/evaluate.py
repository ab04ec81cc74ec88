"""Evaluates a finished run's models on held-out recordings: table, results.json and report.html."""

from __future__ import annotations

import functools
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.systems.cmac.baseline import baseline
from cmx_fast.systems.cmac.evaluation import (
    EXAMPLES,
    Evaluation,
    attention_examples,
    new_model,
    pointing,
    score,
    table,
)
from cmx_fast.systems.cmac.features import Features, chosen, extract, gathered
from cmx_fast.systems.cmac.localisation import POSITIONS, Positions
from cmx_fast.systems.cmac.model import CMAC, OBJECTIVES
from cmx_fast.systems.cmac.options import NAMES
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.report import write_report
from cmx_fast.train.run_folder import FinishedRun


def evaluate_run(
    run: FinishedRun,
    train: Clips,
    test: Clips,
    data: Path,
    *,
    split: str,
    evaluate: str = "all",
    most: int = 0,
) -> Evaluation | None:
    """Measure every model of the run; print the table, write results.json and report.html.

    Several processes share the recordings of each model; the first one alone scores and writes, and gets a result.

    Args:
        split: the name of ``test``.
        evaluate: "all", or "retrieval": without classification, for which the training recordings would be seen.
        most: recordings of a split, chosen at random but alike, that count; 0: all.
    """
    recipe, mixed = run.recipe(CMACRecipe), run.config["precision"] == "bf16"
    rows, test_rows = chosen(train, most), chosen(test, most)
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    positions = Positions(data / POSITIONS, test) if (data / POSITIONS).is_file() else None
    examples = test_rows[:: max(1, len(test_rows) // EXAMPLES)][:EXAMPLES]
    evaluation = Evaluation(len(test_rows), split, recipe.compare, SeedScores(run.config["models"]), {})
    for name, seed in run.models():
        model = new_model(name, recipe).to(test.device)
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))

        def features(clips: Clips, rows: Tensor, model: CMAC = model) -> Features:
            return gathered(clips, rows, functools.partial(_extract, model, clips, mixed=mixed))

        known = features(train, rows) if evaluate == "all" else None
        held_out = features(test, test_rows)
        if not first:
            continue
        figures = score(known, held_out)
        if positions is not None:
            figures |= pointing(model, test, positions, test_rows, mixed=mixed)
        evaluation.chance |= {"guided": figures.pop("chance")} if "chance" in figures else {}
        evaluation.scores.add(name, figures)
        if seed == run.config["seeds"][0] and name in OBJECTIVES:
            evaluation.examples[name] = attention_examples(model, test, examples)
    if not first:
        return None
    if test.keeps_maps:
        known, held_out = baseline(train, test, recipe, rows, test_rows)
        evaluation.baseline = score(known if evaluate == "all" else None, held_out)
    largest = float(train.labels.bincount().max() / len(train))
    evaluation.chance |= {"predicted": evaluation.chance["guided"]} if "guided" in evaluation.chance else {}
    evaluation.chance |= dict.fromkeys(("audio_to_video", "video_to_audio"), 1 / len(test_rows))
    evaluation.chance |= dict.fromkeys(("video_linear", "audio_linear"), largest)
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation))
    console.print(f"report: {write_report(run, evaluation, NAMES)}")
    return evaluation


def _extract(model: CMAC, clips: Clips, rows: Tensor, *, mixed: bool) -> Features:
    return extract(model, clips, rows=rows, mixed=mixed)
