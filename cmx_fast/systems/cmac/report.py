"""report.html of a CMAC run: Table 1, figure 5's pictures and curves in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
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
    frame = (example.clip[:, example.clip.shape[1] // 2] * STD + MEAN).clamp(0, 1).permute(1, 2, 0).numpy()
    bands = example.spectrogram.flip(0).numpy()
    # Filters to which no frequency belongs lie far below all others.
    low, high = np.quantile(bands, (0.25, 1.0))
    sound = matplotlib.colormaps["magma"](np.clip((bands - low) / max(1e-6, high - low), 0, 1))[..., :3]
    uris = {"name": example.name, "frame": _picture(frame), "sound": _picture(sound)}
    for kind in ("guided", "predicted"):
        video_map = example.maps[f"video {kind}"]
        audio_map = example.maps[f"audio {kind}"].flip(0)
        uris[f"video {kind}"] = _picture(_under(frame, video_map[video_map.shape[0] // 2]))
        uris[f"audio {kind}"] = _picture(_under(sound, audio_map))
    return uris


def _under(picture: np.ndarray, heat: Tensor) -> np.ndarray:
    """Lay a map over the picture (H, W, 3), its least value blue and its highest red."""
    heat = F.interpolate(heat[None, None].float(), picture.shape[:2], mode="bilinear")[0, 0]
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-6)
    return 0.5 * picture + 0.5 * matplotlib.colormaps["jet"](heat.numpy())[..., :3]


def _picture(values: np.ndarray) -> str:
    image = Image.fromarray((255 * values).astype(np.uint8))
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
