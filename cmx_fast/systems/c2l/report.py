"""report.html of a C2L run: Table 1, coloured segmentations and curves in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from cmx_fast.evaluate import figures, segmentation
from cmx_fast.evaluate.colours import BLUE, GREEN, GREY, ORANGE
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.c2l.baselines import BASELINES
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.evaluation import MEASURES, Clusters, Evaluation
from cmx_fast.systems.c2l.options import NAMES
from cmx_fast.train.run_folder import FinishedRun

#: Pixels of a picture in the report.
SIZE = 132
COLOURS = {"picie": GREY, "part": ORANGE, "part+pixel": GREEN, "c2l": BLUE}


def write_report(run: FinishedRun, evaluation: Evaluation, pictures: Pictures) -> Path:
    """Write report.html into the run folder."""
    config = run.config
    html = render(
        "systems/c2l/report.html.j2",
        config=config,
        evaluation=evaluation,
        names={name: NAMES[name] for name in config["models"]},
        baselines={name: BASELINES[name] for name in evaluation.baselines.by_model},
        measures=MEASURES,
        cell=evaluation.scores.for_page,
        baseline_cell=evaluation.baselines.for_page,
        seeds=len(config["seeds"]),
        pictures=len(pictures),
        skipped=pictures.dataset.skipped,
        palette=[f"rgb{c}" for c in segmentation.palette(len(config["classes"]))],
        examples=[example(pictures, evaluation, i) for i in range(len(evaluation.examples))],
        curves=curves(run.rows(), config["models"], evaluation.largest_class),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def example(pictures: Pictures, evaluation: Evaluation, index: int) -> dict[str, Any]:
    """Data URIs of a picture, its mask and every model's segmentation of it."""
    dataset, picture = pictures.dataset, evaluation.examples[index]
    classes = len(pictures.class_names)
    image = Image.fromarray(dataset.load_image(picture).permute(1, 2, 0).numpy())
    return {
        "name": dataset.ids[picture],
        "picture": figures.jpeg(image.resize((SIZE, SIZE))),
        "truth": figures.label_map(dataset.load_mask(picture), classes, SIZE),
        "models": {
            name: figures.label_map(labels[index], classes, SIZE) for name, labels in evaluation.shown.items()
        },
    }


def write_clusters_report(run: FinishedRun, found: Clusters, pictures: Pictures) -> Path:
    """Write the report.html of pictures without masks into the run folder."""
    config, dataset = run.config, pictures.dataset
    colours = len(next(iter(found.shares.values()))[0])
    examples = []
    for row, picture in enumerate(found.examples):
        image = Image.fromarray(dataset.load_image(picture).permute(1, 2, 0).numpy())
        painted = {
            name: figures.label_map(labels[row], colours, SIZE) for name, labels in found.shown.items()
        }
        examples.append(
            {
                "name": dataset.ids[picture],
                "picture": figures.jpeg(image.resize((SIZE, SIZE))),
                "models": painted,
            }
        )
    html = render(
        "systems/c2l/clusters.html.j2",
        config=config,
        split=found.split,
        shares={name: seeds[0] for name, seeds in found.shares.items()},
        names=NAMES,
        pictures=len(pictures),
        skipped=dataset.skipped,
        palette=[f"rgb{colour}" for colour in segmentation.palette(colours)],
        examples=examples,
        curves=curves(run.rows(), config["models"], None),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def curves(rows: figures.Rows, models: list[str], largest: float | None) -> str:
    """Plot clustering and losses against the steps, and held-out accuracy where the share of one class is given."""
    trained = [name for name in models if name != "dff"]

    def lines(metric: str) -> list[tuple[str, str, str, str]]:
        return [(name, metric, NAMES[name][1], COLOURS[name]) for name in trained]

    accuracy = {
        "title": "Held-out accuracy",
        "y": "matched accuracy",
        "limits": (0, 1),
        "level": (largest, "all of one class"),
        "lines": lines("accuracy"),
    }
    panels: list[dict[str, Any]] = [
        *([] if largest is None else [accuracy]),
        {"title": "Clustering loss", "y": "cross-entropy in the view", "lines": lines("cluster")},
        {
            "title": "Collapse",
            "y": "largest cluster's share",
            "limits": (0, 1),
            "lines": lines("largest cluster"),
        },
    ]
    return figures.curves(rows, panels)
