"""``cmx evaluate cmac``: a finished run's models on held-out recordings: table, results.json and report.html."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer
from rich.console import Console
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.video_sets import VIDEO_SETS
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.options import EncoderFile, RunData
from cmx_fast.systems.cmac.baseline import baseline
from cmx_fast.systems.cmac.evaluation import (
    EXAMPLES,
    NAMES,
    Evaluation,
    attention_examples,
    new_model,
    pointing,
    score,
    table,
)
from cmx_fast.systems.cmac.features import Features, chosen, extract, gathered, open_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.localisation import POSITIONS, Positions
from cmx_fast.systems.cmac.model import CMAC, OBJECTIVES
from cmx_fast.systems.cmac.options import CMACRun, MostRecordings, Split, check_evaluation, split_of
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.report import write_report
from cmx_fast.train.fabric import default_device
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.run_folder import FinishedRun, RunFolder


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


def evaluate_cmac(
    run: CMACRun,
    data: RunData = None,
    split: Split = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Measures: all, or retrieval (no classification); default: the run's.")
    ] = None,
    recordings: MostRecordings = 0,
    encoder_file: EncoderFile = None,
) -> None:
    """Evaluate a finished run on the held-out split: table, results.json and report.html."""
    finished = RunFolder.open_finished(run, "train cmac")
    root, recipe = data or Path(finished.config["data"]), finished.recipe(CMACRecipe)
    dataset, device = finished.config["dataset"], default_device()
    if evaluate is None:
        evaluate = finished.config.get("evaluate", "all")
        evaluate = "all" if evaluate == "none" else evaluate
    check_evaluation(evaluate, ("retrieval", "all"))
    held_out = split_of(dataset, split)
    encoder = run_encoder(finished, encoder_file)
    train, test = (
        open_clips(VIDEO_SETS[dataset](root, name), recipe, device) for name in ("train", held_out)
    )
    if encoder is not None:
        for name, clips in (("train", train), (held_out, test)):
            mixed = finished.config["precision"] == "bf16"
            keep_frame_maps(clips, encoder, recipe, maps_file(run, name), mixed=mixed)
    evaluate_run(finished, train, test, root, split=held_out, evaluate=evaluate, most=recordings)
