"""report.html of a Sound2Scene run: Table 1, pictures of sounds, the controls and curves in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cmx_fast.evaluate import figures
from cmx_fast.evaluate.colours import BLUE, GREY
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.sound2scene.control_study import VOLUMES, ControlEffect
from cmx_fast.systems.sound2scene.evaluation import Evaluation, Example, retrieval_rows
from cmx_fast.train.run_folder import FinishedRun

#: Pixels of a picture in the report.
SIZE = 96


def write_report(
    run: FinishedRun,
    evaluation: Evaluation,
    rows: dict[str, str],
    class_names: list[str],
    examples: list[Example],
    quiet_to_loud: Tensor,
) -> Path:
    """Write report.html into the run folder; ``quiet_to_loud`` (sounds, volumes, 3, S, S)."""
    html = render(
        "systems/sound2scene/report.html.j2",
        config={**run.config, "seeds": [run.config["seed"]]},
        evaluation=evaluation,
        rows=rows,
        retrieval_rows=retrieval_rows(evaluation),
        examples=[
            {
                "name": e.name,
                "label": e.label,
                "frame": _picture(e.frame),
                "from_frame": _picture(e.from_frame),
                "from_sound": [_picture(p) for p in e.from_sound],
                "retrieved": _picture(e.retrieved),
            }
            for e in examples
        ],
        controls={name: _control(effect, class_names) for name, effect in evaluation.controls.items()},
        volumes=list(VOLUMES),
        quiet_to_loud=[[_picture(p) for p in strip] for strip in quiet_to_loud],
        curves=_curves(run.rows(), evaluation),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def _picture(values: Tensor) -> str:
    return figures.jpeg(to_pil_image(values.clamp(0, 1)).resize((SIZE, SIZE)))


def _control(effect: ControlEffect, class_names: list[str]) -> dict[str, Any]:
    """One control as the template takes it."""
    return {
        "setting": effect.setting,
        "values": effect.values,
        "right": effect.right,
        "plot": _plot(effect),
        "strips": [
            {
                "since": class_names[since],
                "to": class_names[to],
                "pictures": [_picture(p) for p in strip],
            }
            for strip, (since, to) in zip(effect.strips, effect.classes, strict=True)
        ],
    }


def _plot(effect: ControlEffect) -> str:
    """Plot the mean probability of the two classes against the control's positions."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.subplots()
        positions = range(len(effect.values))
        for values, colour, label in ((effect.since, GREY, "class left"), (effect.to, BLUE, "class sought")):
            axes.plot(positions, values, color=colour, lw=2, marker="o", ms=4, label=label)
        axes.set_xticks(positions, effect.values, fontsize=8)
        axes.set(xlabel=effect.setting, ylabel="mean probability", ylim=(0, None))
        axes.legend(loc="best")
        return figures.svg(figure)


def _curves(metrics: figures.Rows, evaluation: Evaluation) -> str:
    """Plot losses and held-out retrieval against the steps."""
    rows = [{**row, "stage": f"seed/{row['stage']}"} for row in metrics]
    return figures.curves(
        rows,
        [
            {
                "title": "Alignment loss",
                "y": "nats",
                "lines": [
                    ("sounds", "loss", "a training batch", BLUE),
                    ("sounds", "held_out_loss", "all scenes that are measured", GREY),
                ],
            },
            {
                "title": "Retrieval during training",
                "y": "sound to picture, R@1",
                "lines": [("sounds", "sound_to_picture", "R@1", BLUE)],
            },
        ],
    )
