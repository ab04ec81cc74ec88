"""``cmx evaluate cmac``: a finished run's models on held-out recordings: table, results.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.video_sets import VIDEO_SETS, held_out
from cmx_fast.networks.weights import load, read_json
from cmx_fast.systems.cmac.evaluation import EXAMPLES, NAMES, Evaluation, look, new_model, score, table
from cmx_fast.systems.cmac.features import extract, open_clips
from cmx_fast.systems.cmac.localisation import POSITIONS, Positions
from cmx_fast.systems.cmac.model import OBJECTIVES
from cmx_fast.systems.cmac.options import CMACRun
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.cmac.report import write_report
from cmx_fast.train.finished import finished_run
from cmx_fast.train.options import RunData, default_device


def evaluate_run(run: Path, train: Clips, test: Clips, data: Path) -> Evaluation:
    """Try every model of the run, print the table, write results.json and report.html."""
    config = read_json(run / "config.json")
    recipe, mixed = CMACRecipe.stored(config["recipe"], run / "config.json"), config["precision"] == "bf16"
    positions = Positions(data / POSITIONS, test) if (data / POSITIONS).is_file() else None
    shown = torch.arange(0, len(test), max(1, len(test) // EXAMPLES))[:EXAMPLES]
    evaluation = Evaluation(len(test), {name: [] for name in config["models"]}, {})
    for name in config["models"]:
        for seed in config["seeds"]:
            model = new_model(name, recipe).to(test.device)
            model.load_state_dict(load(run / f"seed{seed}" / f"{name}.pt")["module"])
            figures = score(model, extract(model, train, mixed=mixed), test, positions, mixed=mixed)
            evaluation.chance |= {"guided": figures.pop("chance")} if "chance" in figures else {}
            evaluation.scores[name].append(figures)
            if seed == config["seeds"][0] and name in OBJECTIVES:
                evaluation.examples[name] = look(model, test, shown)
    largest = float(train.labels.bincount().max() / len(train))
    evaluation.chance |= {"predicted": evaluation.chance["guided"]} if "guided" in evaluation.chance else {}
    evaluation.chance |= dict.fromkeys(("audio_to_video", "video_to_audio"), 1 / len(test))
    evaluation.chance |= dict.fromkeys(("video_linear", "audio_linear"), largest)
    (run / "results.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    console = Console()
    console.print(table(evaluation))
    console.print(f"report: {write_report(run, config, evaluation, NAMES)}")
    return evaluation


def evaluate_cmac(
    run: CMACRun,
    data: RunData = None,
) -> None:
    """Evaluate a finished run on the held-out split: table, results.json and report.html."""
    config = finished_run(run, "train cmac")
    root = data or Path(config["data"])
    recipe = CMACRecipe.stored(config["recipe"], run / "config.json")
    device = default_device()
    adapter = VIDEO_SETS[config["dataset"]]
    train, test = (
        open_clips(adapter(root, split), recipe, device) for split in ("train", held_out(config["dataset"]))
    )
    evaluate_run(run, train, test, root)
