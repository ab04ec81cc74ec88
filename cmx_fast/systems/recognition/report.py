"""report.html of a run of segmentation or classification: the table, pictures with predictions, and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from cmx_fast.evaluate import figures, segmentation
from cmx_fast.evaluate.colours import BLUE, GREEN, GREY, ORANGE
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.recognition.attentions import ATTENTIONS, SEGMENT
from cmx_fast.systems.recognition.data import Pictures
from cmx_fast.systems.recognition.evaluation import BY_CLASS, Evaluation, cost_cells, measures
from cmx_fast.train.run_folder import FinishedRun

#: Pixels of a picture in the report.
SIZE = 132
#: Lines of the curves: grey for the network without attention.
LINES = (BLUE, ORANGE, GREEN, "#8e5ea2", "#c9a227", "#4c9aa8", "#b0476b", "#6b7d2a")


def write_report(run: FinishedRun, evaluation: Evaluation, pictures: Pictures) -> Path:
    """Write report.html into the run folder."""
    config, names = run.config, run.config["models"]
    classes = config["classes"]
    html = render(
        "systems/recognition/report.html.j2",
        config=config,
        evaluation=evaluation,
        segments=evaluation.task == SEGMENT,
        titles={name: ATTENTIONS[name].title for name in names},
        best=max(names, key=lambda name: evaluation.scores.spread(name, headline(evaluation.task))[0]),
        headline=headline(evaluation.task),
        measures=measures(evaluation.task),
        by_class=BY_CLASS if evaluation.task == SEGMENT else {"recall": BY_CLASS["recall"]},
        cell=evaluation.scores.for_page,
        costs={name: cost_cells(value) for name, value in evaluation.costs.items()},
        seeds=len(config["seeds"]),
        pictures=len(pictures),
        skipped=pictures.skipped,
        palette=[f"rgb{c}" for c in segmentation.palette(len(classes))],
        examples=[example(pictures, evaluation, index) for index in evaluation.examples],
        curves=curves(run.rows(), names, evaluation.task),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def headline(task: str) -> str:
    """The figure that a task is mostly judged by."""
    return "miou" if task == SEGMENT else "accuracy"


def example(pictures: Pictures, evaluation: Evaluation, index: int) -> dict[str, Any]:
    """A picture as a data URI, its truth and every network's prediction: label maps as data URIs, or class names."""
    image = Image.fromarray(pictures.load_image(index).permute(1, 2, 0).numpy())
    target, names = pictures.target(index), pictures.class_names
    predicted = {name: rows[index] for name, rows in evaluation.shown.items()}
    truth: Any
    if evaluation.task == SEGMENT:
        truth = figures.label_map(target["mask"], len(names), SIZE)
        shown = {name: figures.label_map(row, len(names), SIZE) for name, row in predicted.items()}
    else:
        truth = names[int(target["label"])]
        shown = {name: names[int(row)] for name, row in predicted.items()}
    return {
        "name": pictures.ids[index],
        "picture": figures.jpeg(image.resize((SIZE, SIZE))),
        "truth": truth,
        "models": shown,
    }


def curves(rows: figures.Rows, names: list[str], task: str) -> str:
    """Plot figures on the validation part and the loss against the steps."""
    others = iter(LINES * len(names))
    colours = {name: GREY if name == "none" else next(others) for name in names}

    def lines(metric: str) -> list[tuple[str, str, str, str]]:
        return [(name, metric, ATTENTIONS[name].title, colours[name]) for name in names]

    titles = {"accuracy": "Accuracy on validation pictures", "miou": "Mean IoU on validation pictures"}
    shown = ["miou", "accuracy"] if task == SEGMENT else ["accuracy"]
    panels: list[dict[str, Any]] = [
        {"title": titles[metric], "y": "share", "lines": lines(metric)} for metric in shown
    ]
    return figures.curves(rows, [*panels, {"title": "Loss", "y": "of the batches", "lines": lines("loss")}])
