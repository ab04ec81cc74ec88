"""report.html of a localiser: its figures, and where it points for own sounds and for sounds of nothing there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from cmx_fast.evaluate import figures
from cmx_fast.evaluate.colours import BLUE, ORANGE
from cmx_fast.evaluate.localisation import SIDE, enlarge
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.sound2scene.localiser.evaluation import NAMES, NEGATIVES, Example, Localisation
from cmx_fast.train.run_folder import FinishedRun

STAGE = "localiser"


def write_report(run: FinishedRun, result: Localisation, data: Path, dataset: str) -> Path:
    """Write report.html into the run folder."""
    maps = [heat for example in result.examples for heat in example.maps.values()]
    limits = min(float(heat.min()) for heat in maps), max(float(heat.max()) for heat in maps)
    threshold = result.thresholds["localiser"]
    # A stage without a seed in its name is drawn as one of the run's seed.
    rows = [row | {"stage": f"seed/{STAGE}"} for row in run.rows() if row["stage"] == STAGE]
    html = render(
        "systems/sound2scene/localiser/report.html.j2",
        config=run.config | {"seeds": [run.config["seed"]]},
        result=result,
        names=NAMES,
        negatives=NEGATIVES,
        data=data,
        dataset=dataset,
        examples=[pictures(example, threshold, limits) for example in result.examples],
        curves=figures.curves(
            rows,
            [
                {"title": "Loss", "y": "eq. 6", "lines": [(STAGE, "loss", "training", BLUE)]},
                {
                    "title": "Own sound agrees best",
                    "y": "share of held-out videos",
                    "limits": (0, 1),
                    "lines": [(STAGE, "own_is_best", "held out", BLUE)],
                },
            ],
        ),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def pictures(example: Example, threshold: float, limits: tuple[float, float]) -> dict[str, str]:
    """Data URIs of the picture with its boxes, and of each map over it with the edge of the region at ``threshold``.

    ``limits``: the cosines that are blue and red, the same for all pictures, so that a map that falls is seen to.
    """
    pixels = np.asarray(
        Image.fromarray(example.picture.permute(1, 2, 0).numpy()).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
    )
    boxed = Image.fromarray(pixels)
    for left, top, right, bottom in (example.boxes * (SIDE - 1)).tolist():
        ImageDraw.Draw(boxed).rectangle((left, top, right, bottom), outline=ORANGE, width=3)
    uris = {"name": example.name, "picture": figures.jpeg(boxed)}
    low, high = limits
    for kind, heat in example.maps.items():
        shown = np.array(figures.heated(pixels, (heat - low) / max(1e-6, high - low)))
        shown[edge(enlarge(heat[None])[0] >= threshold)] = 255
        uris[kind] = figures.jpeg(Image.fromarray(shown))
    return uris


def edge(region: Tensor) -> NDArray[np.bool_]:
    """The pixels of a region, bool (S, S), of which a neighbour or the picture's side is not in it."""
    inside = np.pad(region.numpy(), 1)
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return inside[1:-1, 1:-1] & ~whole
