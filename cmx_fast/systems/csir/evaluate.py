"""``cmx evaluate csir``: a finished run's models on held-out pairs: table, results.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cmx_fast.evaluate import retrieval
from cmx_fast.evaluate.retrieval import Embeddings, Recalls
from cmx_fast.networks.weights import load, read_json
from cmx_fast.systems.csir.data import PairData
from cmx_fast.systems.csir.dscmr import DSCMR
from cmx_fast.systems.csir.evaluation import (
    Evaluation,
    embed,
    new_model,
    open_split,
    pretrained_image_encoder,
)
from cmx_fast.systems.csir.model import CSIR
from cmx_fast.systems.csir.recipe import Recipe
from cmx_fast.systems.csir.report import write_report
from cmx_fast.train.finished import finished_run
from cmx_fast.train.options import RunData, SkipBad, default_device

Speech = Annotated[Path | None, typer.Option(help="Dry sentences, <split>/*.wav; default DATA/speech.")]


def evaluate_run(run: Path, data: PairData) -> Evaluation:
    """Embed the pairs with every model of the run, print the table, write results.json and report.html."""
    config = read_json(run / "config.json")
    recipe, spaces = Recipe.stored(config["recipe"], run / "config.json"), config["spaces"]
    distinct = retrieval.distinct_images([p.image for p in data.dataset.pairs])
    recalls: dict[str, list[Recalls]] = {name: [] for name in config["models"]}
    alternative: dict[str, list[Recalls]] = {name: [] for name in config["models"]}
    shown: Embeddings | None = None
    looked_at: CSIR | DSCMR | None = None
    for name in config["models"]:
        for seed in config["seeds"]:
            model = new_model(name, recipe, len(spaces)).to(data.device)
            model.load_state_dict(load(run / f"seed{seed}" / f"{name}.pt")["module"])
            embeddings = embed(model, data, recipe)
            recalls[name].append(retrieval.recalls(embeddings))
            alternative[name].append(retrieval.recalls(embeddings, distinct))
            if shown is None:
                shown, looked_at = embeddings, model
    assert shown is not None
    assert looked_at is not None
    evaluation = Evaluation(
        recalls, alternative, (len(shown.image), len(distinct)), retrieval.chance(shown), shown
    )
    (run / "results.json").write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    console = Console()
    console.print(retrieval.table(recalls, evaluation.caption()))
    before = pretrained_image_encoder(run, config, recipe)
    console.print(f"report: {write_report(run, config, evaluation, data, looked_at, before)}")
    return evaluation


def evaluate_csir(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train csir.")],
    data: RunData = None,
    speech: Speech = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a finished run on the test split: table, results.json and report.html."""
    config = finished_run(run, "train csir")
    device = default_device()
    test = open_split(
        data or Path(config["data"]),
        "test",
        Recipe.stored(config["recipe"], run / "config.json"),
        device,
        spaces=config["spaces"],
        speech=speech,
        skip_bad=skip_bad,
    )
    evaluate_run(run, test)
