"""Measures Sound2Scene on held-out scenes: generated pictures, retrieval, and the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.evaluate.frame_classifier import probabilities
from cmx_fast.evaluate.generated_pictures import (
    ClipJudge,
    Networks,
    as_float,
    frechet_distance,
    inception_score,
    recall,
)
from cmx_fast.evaluate.summary import new_table
from cmx_fast.systems.sound2scene.control_study import ControlEffect
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.sound_features import (
    own_rank,
)


@dataclass(frozen=True)
class Example:
    """Pictures of a held-out scene, (3, S, S) in [0, 1].

    Attributes:
        frame: the real one.
        from_frame: generated from the frame's features.
        from_sound: generated from the sound's features, (samples, 3, S, S), each from a noise of its own.
        retrieved: the training picture nearest to the sound.
    """

    name: str
    label: str
    frame: Tensor
    from_frame: Tensor
    from_sound: Tensor
    retrieved: Tensor


#: Rows of Table 1 with the origin of their pictures.
ROWS = {
    "A": "the picture, by G",
    "B": "the sound, by G",
    "C": "the sound, retrieved",
    "D": "real frames",
}
#: Pictures that are generated from each held-out scene, from different noise.
SAMPLES = 4
#: The most training pictures from which the classifier of real frames learns.
CLASSIFIED = 20_000


@dataclass
class Evaluation:
    """The figures of the table and the report; shares are of 1.

    Attributes:
        scenes: the number of held-out scenes with sound and picture.
        classes: the number of their classes.
        retrieval: R@K of a sound's own picture and of a picture's own sound, with chance.
        table: the figures of each row of ROWS.
        compared_by: the network whose features FID and IS compare.
        controls: the effect of each control.
    """

    scenes: int
    classes: int
    retrieval: dict[str, float]
    table: dict[str, dict[str, float]]
    compared_by: str
    controls: dict[str, ControlEffect]

    def as_dict(self) -> dict[str, Any]:
        controls = {name: asdict(effect) for name, effect in self.controls.items()}
        for figures in controls.values():
            del figures["strips"], figures["classes"]
        return {
            "scenes": self.scenes,
            "classes": self.classes,
            "retrieval": self.retrieval,
            "rows": ROWS,
            "table": self.table,
            "compared_by": self.compared_by,
            "controls": controls,
        }


def load_pictures(data: SceneData, numbers: Tensor) -> Tensor:
    """Load the pictures of these numbers, uint8 (P, 3, S, S), but for those that can't be read."""
    return torch.cat([pictures for _, pictures in data.pictures(list(numbers.split(64)))])


def generate_samples(system: Sound2Scene, features: Tensor, device: str) -> Tensor:
    """Pictures of features (N, D), float (SAMPLES N, 3, S, S): all from a first noise, all from a second, ..."""
    pictures = []
    for sample in range(SAMPLES):
        noise = system.noise(len(features), seed=sample)
        for h, z in zip(features.split(64), noise.split(64), strict=True):
            pictures.append(system.generate(h.to(device), z).cpu())
    return torch.cat(pictures)


def retrieval_figures(sounds: Tensor, pictures: Tensor) -> dict[str, float]:
    """R@K in both directions for features of sounds and pictures (N, D) of the same scenes, with chance."""
    directions = {
        "sound_to_picture": own_rank(sounds, pictures),
        "picture_to_sound": own_rank(pictures, sounds),
    }
    figures = {
        f"{name} R@{k}": float((ranks < k).double().mean())
        for name, ranks in directions.items()
        for k in (1, 5, 10)
    }
    return figures | {f"chance R@{k}": min(1.0, k / len(sounds)) for k in (1, 5, 10)}


def picture_figures(
    pictures: Tensor,
    labels: Tensor,
    real: Tensor,
    networks: Networks,
    classifier: Any,
    judge: ClipJudge | None,
) -> dict[str, float]:
    """The figures of one row of Table 1."""
    classes = probabilities(classifier, pictures)
    figures = {"class R@1": recall(classes, labels, 1), "class R@5": recall(classes, labels, 5)}
    if judge is not None:
        names = judge.scores(pictures)
        figures |= {f"CLIP R@{k}": recall(names, labels, k) for k in (1, 5)}
    return figures | {
        "FID": frechet_distance(networks, real, pictures),
        "IS": inception_score(networks, pictures),
    }


def choose_examples(
    test: SceneData, scenes: Tensor, labels: Tensor, frames: Tensor, rows: dict[str, Tensor]
) -> list[Example]:
    """Two scenes of each class, at most 24 in all, with their pictures in the rows of Table 1."""
    chosen = [int(i) for c in labels.unique()[:12] for i in (labels == c).nonzero()[:2, 0]]
    count = len(labels)
    return [
        Example(
            test.entries[int(scenes[i])].name,
            test.class_names[int(labels[i])],
            as_float(frames[i]),
            rows["A"][i],
            rows["B"][i::count][:3],
            as_float(rows["C"][i]),
        )
        for i in chosen
    ]


def table(evaluation: Evaluation) -> Table:
    """Table 1 for a terminal."""
    names = list(evaluation.table["A"])
    result = new_table(
        f"{evaluation.scenes} held-out scenes of {evaluation.classes} classes",
        [name.replace(" ", "\n") for name in names],
        first="pictures of",
        caption=f"FID and IS: {evaluation.compared_by}",
    )
    for row, figures in evaluation.table.items():
        cells = [f"{figures[n]:.2f}" if n in ("FID", "IS") else f"{100 * figures[n]:.1f}" for n in names]
        result.add_row(f"{row}  {ROWS[row]}", *cells)
    return result
