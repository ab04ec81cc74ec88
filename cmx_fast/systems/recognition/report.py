"""report.html of a run: the table, pictures with their truth and predictions, and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from cmx_fast.evaluate import figures, segmentation
from cmx_fast.evaluate.colours import BLUE, GREEN, GREY, ORANGE
from cmx_fast.evaluate.detection import Boxes
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.recognition.data import Pictures
from cmx_fast.systems.recognition.evaluation import BY_CLASS, MEASURES, Evaluation, cost_cells
from cmx_fast.systems.recognition.options import ATTENTIONS, CLASSIFY, SEGMENT
from cmx_fast.train.run_folder import FinishedRun

#: Pixels of a picture in the report.
SIZE = 132
#: The score from which a detection is drawn.
SURE = 0.5
#: Lines of the curves: grey for the network without attention.
LINES = (BLUE, ORANGE, GREEN, "#8e5ea2", "#c9a227", "#4c9aa8", "#b0476b", "#6b7d2a")


def write_report(run: FinishedRun, evaluation: Evaluation, pictures: Pictures) -> Path:
    """Write report.html into the run folder."""
    config, names = run.config, run.config["models"]
    classes, headline = config["classes"], next(iter(MEASURES[evaluation.task]))
    html = render(
        "systems/recognition/report.html.j2",
        config=config,
        evaluation=evaluation,
        task=evaluation.task,
        titles={name: ATTENTIONS[name].title for name in names},
        best=max(names, key=lambda name: evaluation.scores.spread(name, headline)[0]),
        headline=headline,
        measures=MEASURES[evaluation.task],
        by_class=BY_CLASS[evaluation.task],
        cell=evaluation.scores.for_page,
        costs={name: cost_cells(value) for name, value in evaluation.costs.items()},
        seeds=len(config["seeds"]),
        pictures=len(pictures),
        skipped=pictures.skipped,
        palette=[f"rgb{c}" for c in segmentation.palette(1 + len(classes))],
        examples=[example(pictures, evaluation, index) for index in evaluation.examples],
        curves=curves(run.rows(), names, evaluation.task),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def example(pictures: Pictures, evaluation: Evaluation, index: int) -> dict[str, Any]:
    """A picture as a data URI, its truth and every network's prediction: pictures as data URIs, or class names."""
    pixels = pictures.load_image(index)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((SIZE, SIZE))
    target, names = pictures.target(index), pictures.class_names
    predicted = {name: rows[index] for name, rows in evaluation.shown.items()}

    def shown(prediction: Any) -> str:
        if evaluation.task == SEGMENT:
            return figures.label_map(prediction, len(names), SIZE)
        return (
            names[int(prediction)] if evaluation.task == CLASSIFY else figures.jpeg(boxed(image, prediction))
        )

    truth: Any
    if evaluation.task == SEGMENT:
        truth = target["mask"]
    elif evaluation.task == CLASSIFY:
        truth = target["label"]
    else:
        there = target["labels"] > 0
        truth = Boxes(target["boxes"][there], target["labels"][there])
    return {
        "name": pictures.ids[index],
        "picture": figures.jpeg(image),
        "truth": shown(truth),
        "models": {name: shown(prediction) for name, prediction in predicted.items()},
    }


def boxed(image: Image.Image, boxes: Boxes) -> Image.Image:
    """The picture with boxes in their classes' colours; of detections those with a score of a half or more."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    sure = torch.ones(len(boxes.labels)) if boxes.scores is None else boxes.scores
    colours = segmentation.palette(1 + max(boxes.labels.tolist(), default=0))
    for box, label, score in zip(
        (SIZE * boxes.boxes).tolist(), boxes.labels.tolist(), sure.tolist(), strict=True
    ):
        if score >= SURE:
            pen.rectangle(box, outline=colours[label], width=2)
    return drawn


def curves(rows: figures.Rows, names: list[str], task: str) -> str:
    """Plot the task's figures on the validation part, and the loss, against the steps."""
    others = iter(LINES * len(names))
    colours = {name: GREY if name == "none" else next(others) for name in names}

    def lines(metric: str) -> list[tuple[str, str, str, str]]:
        return [(name, metric, ATTENTIONS[name].title, colours[name]) for name in names]

    panels: list[dict[str, Any]] = [
        {"title": f"Validation: {title}", "y": "share", "lines": lines(metric)}
        for metric, title in list(MEASURES[task].items())[:2]
    ]
    return figures.curves(rows, [*panels, {"title": "Loss", "y": "of the batches", "lines": lines("loss")}])
