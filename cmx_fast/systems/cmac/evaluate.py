"""``cmx evaluate cmac``: a finished run's models on held-out recordings: table, results.json and report.html."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.video_sets import VIDEO_SETS, held_out
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.systems.cmac.evaluation import (
    EXAMPLES,
    NAMES,
    Evaluation,
    attention_examples,
    new_model,
    score,
    table,
)
from cmx_fast.systems.cmac.features import extract, open_clips
from cmx_fast.systems.cmac.frame_maps import keep_frame_maps, maps_file
from cmx_fast.systems.cmac.localisation import POSITIONS, Positions
from cmx_fast.systems.cmac.model import OBJECTIVES
from cmx_fast.systems.cmac.options import CMACRun
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.report import write_report
from cmx_fast.train.frozen_features import run_encoder
from cmx_fast.train.options import EncoderFile, RunData, default_device
from cmx_fast.train.run_folder import FinishedRun, RunFolder


def evaluate_run(run: FinishedRun, train: Clips, test: Clips, data: Path) -> Evaluation:
    """Measure every model of the run; print the table, write results.json and report.html."""
    recipe, mixed = run.recipe(CMACRecipe), run.config["precision"] == "bf16"
    positions = Positions(data / POSITIONS, test) if (data / POSITIONS).is_file() else None
    examples = torch.arange(0, len(test), max(1, len(test) // EXAMPLES))[:EXAMPLES]
    evaluation = Evaluation(len(test), SeedScores(run.config["models"]), {})
    for name, seed in run.models():
        model = new_model(name, recipe).to(test.device)
        model.load_state_dict(run.weights(f"seed{seed}/{name}"))
        figures = score(model, extract(model, train, mixed=mixed), test, positions, mixed=mixed)
        evaluation.chance |= {"guided": figures.pop("chance")} if "chance" in figures else {}
        evaluation.scores.add(name, figures)
        if seed == run.config["seeds"][0] and name in OBJECTIVES:
            evaluation.examples[name] = attention_examples(model, test, examples)
    largest = float(train.labels.bincount().max() / len(train))
    evaluation.chance |= {"predicted": evaluation.chance["guided"]} if "guided" in evaluation.chance else {}
    evaluation.chance |= dict.fromkeys(("audio_to_video", "video_to_audio"), 1 / len(test))
    evaluation.chance |= dict.fromkeys(("video_linear", "audio_linear"), largest)
    run.write_results(evaluation.as_dict())
    console = Console()
    console.print(table(evaluation))
    console.print(f"report: {write_report(run, evaluation, NAMES)}")
    return evaluation


def evaluate_cmac(
    run: CMACRun,
    data: RunData = None,
    encoder_file: EncoderFile = None,
) -> None:
    """Evaluate a finished run on the held-out split: table, results.json and report.html."""
    finished = RunFolder.open_finished(run, "train cmac")
    root, recipe = data or Path(finished.config["data"]), finished.recipe(CMACRecipe)
    dataset, device = finished.config["dataset"], default_device()
    encoder = run_encoder(finished, encoder_file)
    splits = ("train", held_out(dataset))
    train, test = (open_clips(VIDEO_SETS[dataset](root, split), recipe, device) for split in splits)
    if encoder is not None:
        for split, clips in zip(splits, (train, test), strict=True):
            keep_frame_maps(clips, encoder, recipe, maps_file(run, split))
    evaluate_run(finished, train, test, root)
