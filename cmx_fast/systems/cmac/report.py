"""report.html of a CMAC run: Table 1, figure 5's pictures and curves in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmx_fast.data.transforms.clip_views import MEAN, STD
from cmx_fast.evaluate import figures
from cmx_fast.evaluate.colours import BLUE, GREEN, GREY, ORANGE
from cmx_fast.evaluate.pages import render
from cmx_fast.systems.cmac.evaluation import COMPARED, Evaluation, Example
from cmx_fast.train.run_folder import FinishedRun

#: Pixels of a picture in the report.
SIZE = 148
COLOURS = {"single": GREY, "attention": ORANGE, "contrast": GREEN, "cmac": BLUE}


def write_report(run: FinishedRun, evaluation: Evaluation, names: dict[str, tuple[str, str]]) -> Path:
    """Write report.html into the run folder."""
    config = run.config
    html = render(
        "systems/cmac/report.html.j2",
        config=config,
        evaluation=evaluation,
        names={name: names[name] for name in config["models"]},
        measures=evaluation.measures,
        cell=evaluation.scores.for_page,
        compared=COMPARED[evaluation.compare],
        seeds=len(config["seeds"]),
        examples={
            name: [pictures(example) for example in examples]
            for name, examples in evaluation.examples.items()
        },
        curves=curves(
            run.rows(), [name for name in config["models"] if name != "scratch"], evaluation, names
        ),
    )
    file = run.path / "report.html"
    file.write_text(html)
    return file


def pictures(example: Example) -> dict[str, str]:
    """Data URIs of a clip's middle frame and its spectrogram, plain, under the guided and under the predicted map."""
    frame = _pixels(
        (example.clip[:, example.clip.shape[1] // 2] * STD + MEAN).clamp(0, 1).permute(1, 2, 0).numpy()
    )
    bands = example.spectrogram.flip(0).numpy()
    # Filters to which no frequency belongs lie far below all others.
    low, high = np.quantile(bands, (0.25, 1.0))
    sound = _pixels(
        matplotlib.colormaps["magma"](np.clip((bands - low) / max(1e-6, high - low), 0, 1))[..., :3]
    )
    uris = {"name": example.name, "frame": _shown(frame), "sound": _shown(sound)}
    for kind in ("guided", "predicted"):
        video_map = example.maps[f"video {kind}"]
        uris[f"video {kind}"] = _shown(frame, video_map[video_map.shape[0] // 2])
        uris[f"audio {kind}"] = _shown(sound, example.maps[f"audio {kind}"].flip(0))
    return uris


def _pixels(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return (255 * values).astype(np.uint8)


def _shown(pixels: NDArray[np.uint8], heat: Tensor | None = None) -> str:
    """The data URI of a picture (H, W, 3), under a map from its least value, blue, to its highest, red."""
    image = Image.fromarray(pixels)
    if heat is not None:
        heat = heat.float() - heat.min()
        image = figures.heated(pixels, heat / heat.max().clamp_min(1e-6))
    return figures.jpeg(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def curves(
    rows: figures.Rows, models: list[str], evaluation: Evaluation, names: dict[str, tuple[str, str]]
) -> str:
    """Plot held-out retrieval and the losses against the steps."""

    def lines(metric: str) -> list[tuple[str, str, str, str]]:
        return [(name, metric, names[name][1], COLOURS[name]) for name in models]

    panels: list[dict[str, Any]] = [
        {
            "title": "Held-out retrieval",
            "y": "A→V R@1",
            "limits": (0, 1),
            "level": (evaluation.chance["audio_to_video"], "chance"),
            "lines": lines("audio_to_video"),
        },
        {"title": "Contrastive loss", "y": "both directions", "lines": lines("across")},
        {
            "title": "Attention consistency, video",
            "y": "squared error per map",
            "lines": lines("video attention"),
        },
    ]
    return figures.curves(rows, panels)
