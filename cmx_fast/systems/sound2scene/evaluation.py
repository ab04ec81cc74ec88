"""Measures Sound2Scene on held-out scenes: generated pictures, retrieval, and the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.evaluate.frame_classifier import probabilities
from cmx_fast.evaluate.generation import (
    ClipJudge,
    Networks,
    as_float,
    frechet_distance,
    inception_score,
    recall,
)
from cmx_fast.evaluate.summary import new_table
from cmx_fast.systems.sound2scene.control_study import Turned
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.sound_features import (
    own_rank,
)


@dataclass(frozen=True)
class Example:
    """A held-out scene: its frame, the picture of its frame's features, pictures of its sound, and the retrieved one.

    All (3, S, S) in [0, 1]; ``of_sound`` (samples, 3, S, S), each from a noise of its own.
    """

    name: str
    label: str
    frame: Tensor
    of_picture: Tensor
    of_sound: Tensor
    retrieved: Tensor


#: Rows of Table 1: what the pictures are of.
ROWS = {
    "A": "the picture, by G",
    "B": "the sound, by G",
    "C": "the sound, retrieved",
    "D": "real frames",
}
#: Pictures generated of each held-out scene, from different noise; frames of a video that are judged.
SAMPLES = 4
#: Training pictures that the classifier of real frames learns from, at most.
CLASSIFIED = 20_000


@dataclass
class Evaluation:
    """What the report and the table are made of; shares are of 1.

    Attributes:
        scenes: held out, with sound and picture; classes: their number.
        retrieval: R@K of a sound's own picture and the reverse, with chance.
        table: the figures of each row of ROWS.
        compared_by: what the distances and scores are of.
        controls: see :class:`cmx_fast.systems.sound2scene.control_study.Turned`.
    """

    scenes: int
    classes: int
    retrieval: dict[str, float]
    table: dict[str, dict[str, float]]
    compared_by: str
    controls: dict[str, Turned]

    def as_dict(self) -> dict[str, Any]:
        controls = {name: asdict(of) for name, of in self.controls.items()}
        for of in controls.values():
            del of["strips"], of["classes"]
        return {
            "scenes": self.scenes,
            "classes": self.classes,
            "retrieval": self.retrieval,
            "rows": ROWS,
            "table": self.table,
            "compared_by": self.compared_by,
            "controls": controls,
        }


def _pictures(data: SceneData, numbers: Tensor) -> Tensor:
    """uint8 (P, 3, S, S) of pictures that can be read."""
    return torch.cat([pictures for _, pictures in data.pictures(list(numbers.split(64)))])


def _generate(system: Sound2Scene, features: Tensor, device: str) -> Tensor:
    """float (SAMPLES N, 3, S, S): every feature's picture from the first noise, then from the second, ..."""
    made = []
    for sample in range(SAMPLES):
        noise = system.noise(len(features), seed=sample)
        for h, z in zip(features.split(64), noise.split(64), strict=True):
            made.append(system.generate(h.to(device), z).cpu())
    return torch.cat(made)


def _retrieval(sounds: Tensor, pictures: Tensor) -> dict[str, float]:
    ranks = {"sound_to_picture": own_rank(sounds, pictures), "picture_to_sound": own_rank(pictures, sounds)}
    found = {
        f"{name} R@{k}": float((of < k).double().mean()) for name, of in ranks.items() for k in (1, 5, 10)
    }
    return found | {f"chance R@{k}": min(1.0, k / len(sounds)) for k in (1, 5, 10)}


def _figures(
    pictures: Tensor,
    labels: Tensor,
    real: Tensor,
    networks: Networks,
    classifier: Any,
    judge: ClipJudge | None,
) -> dict[str, float]:
    """One row of Table 1."""
    seen = probabilities(classifier, pictures)
    figures = {"class R@1": recall(seen, labels, 1), "class R@5": recall(seen, labels, 5)}
    if judge is not None:
        names = judge.scores(pictures)
        figures |= {f"CLIP R@{k}": recall(names, labels, k) for k in (1, 5)}
    return figures | {
        "FID": frechet_distance(networks, real, pictures),
        "IS": inception_score(networks, pictures),
    }


def _examples(
    test: SceneData, scenes: Tensor, labels: Tensor, frames: Tensor, made: dict[str, Tensor]
) -> list[Example]:
    """Two scenes of each class, at most 24 in all."""
    chosen = [int(i) for c in labels.unique()[:12] for i in (labels == c).nonzero()[:2, 0]]
    count = len(labels)
    return [
        Example(
            test.entries[int(scenes[i])].name,
            test.class_names[int(labels[i])],
            as_float(frames[i]),
            made["A"][i],
            made["B"][i::count][:3],
            as_float(made["C"][i]),
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
