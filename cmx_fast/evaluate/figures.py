"""Pictures and sounds as data URIs, and the report's plots."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmx_fast._extras import require
from cmx_fast.data.media.files import centred, stretched
from cmx_fast.evaluate import segmentation
from cmx_fast.evaluate.colours import GRID, INK, SOFT

STYLE = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "cmx_fast",
    "svg.fonttype": "path",
}

Rows = list[dict[str, Any]]


def picture(file: Path, size: int) -> str:
    """The JPEG data URI of the file's middle square."""
    return jpeg(_square(file, size))


def small_picture(file: Path, side: int) -> str:
    """The JPEG data URI of the whole picture, upright, its longer side at most ``side`` pixels."""
    pixels = stretched(file, lambda _, width, height: (width, height))
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((side, side))
    return jpeg(image)


def _square(file: Path, size: int) -> Image.Image:
    """The file's middle square, upright, at ``size`` pixels."""
    pixels = stretched(file, lambda _, width, height: (width, height))
    square = centred(pixels, min(pixels.shape[1:]))
    return Image.fromarray(square.permute(1, 2, 0).numpy()).resize((size, size))


def jpeg(image: Image.Image) -> str:
    """The JPEG data URI of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def png(image: Image.Image) -> str:
    """The PNG data URI of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def label_map(labels: Tensor, classes: int, size: int) -> str:
    """The PNG data URI of a label map (H, W) in the classes' colours, at ``size`` pixels."""
    colours = segmentation.colour(labels, classes).numpy()
    image = Image.fromarray(np.ascontiguousarray(colours))
    return png(image.resize((size, size), Image.Resampling.NEAREST))


def sound(wave: Tensor, sample_rate: int) -> str:
    """The MP3 data URI of a mono wave in [-1, 1]."""
    buffer = io.BytesIO()
    require("soundfile", "media").write(buffer, wave.numpy(), sample_rate, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay(file: Path, heat: Tensor, size: int) -> str:
    """Lay a heat map over the picture, half and half, red where it is 1."""
    return jpeg(heated(np.asarray(_square(file, size)), heat))


def heated(pixels: NDArray[np.uint8], heat: Tensor) -> Image.Image:
    """Lay a heat map (h, w) in [0, 1] over a picture (H, W, 3), half and half, from blue at 0 to red at 1."""
    grey = Image.fromarray((heat.numpy() * 255).astype(np.uint8))
    warm = np.asarray(grey.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC))
    colour = matplotlib.colormaps["jet"](warm / 255.0)[..., :3] * 255
    return Image.fromarray((0.5 * pixels + 0.5 * colour).astype(np.uint8))


def svg(figure: Figure) -> str:
    """The SVG element of a figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def series(rows: Rows, stage: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """One metric of one stage, e.g. ("csir", "loss"): by seed, its [(step, value)]."""
    by_seed: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        seed, _, kind = row["stage"].partition("/")
        if kind == stage and name in row:
            by_seed[seed].append((row["step"], row[name]))
    return dict(by_seed)


def curves(rows: Rows, panels: list[dict[str, Any]]) -> str:
    """Plot panels side by side: a metric's seeds as thin lines, their mean as a strong one.

    A panel has "title", "y", "lines" = [(stage, metric, label, colour)], and perhaps "limits" and "level" =
    (value, label), a dashed horizontal line.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(panels), 2.9), layout="constrained")
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for stage, metric, label, colour in panel["lines"]:
                by_seed = series(rows, stage, metric)
                if not by_seed:
                    continue
                for line in by_seed.values():
                    axes.plot(*zip(*line, strict=True), color=colour, alpha=0.3, lw=0.9)
                steps = [step for step, _ in next(iter(by_seed.values()))]
                means = [
                    mean(v) for v in zip(*([y for _, y in line] for line in by_seed.values()), strict=True)
                ]
                axes.plot(
                    steps[: len(means)],
                    means,
                    color=colour,
                    lw=2,
                    label=label,
                    marker="o" if len(means) < 8 else None,
                    ms=4,
                )
            if "level" in panel:
                value, label = panel["level"]
                axes.axhline(value, color=SOFT, lw=1, ls=(0, (4, 3)))
                axes.annotate(
                    label,
                    (1, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="right",
                    color=SOFT,
                    fontsize=8.5,
                )
            axes.set(title=panel["title"], xlabel="step", ylabel=panel["y"])
            axes.title.set(fontsize=10.5, fontweight="bold", color=INK)
            if "limits" in panel:
                axes.set_ylim(*panel["limits"])
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best")
        return svg(figure)


def confusion(counts: Tensor, names: list[str]) -> str:
    """Plot the spaces of first answers: counts (spaces, spaces), a row per query's space, rows scaled to 1."""
    share = (counts / counts.sum(1, keepdim=True).clamp_min(1)).numpy()
    ticks = range(len(names)) if len(names) <= 40 else []
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=7)
        axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=7)
        axes.set(xlabel="space of the first answer", ylabel="space of the query")
        figure.colorbar(shown, shrink=0.7, label="share of the queries")
        return svg(figure)
