"""Measures Sound2Scene on held-out scenes: generated pictures, retrieval, and the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.evaluate.frame_classifier import FrameClassifier, probabilities
from cmx_fast.evaluate.generated_pictures import (
    ClipJudge,
    Networks,
    Statistics,
    as_float,
    frechet_distance,
    inception_score,
    recall,
)
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.evaluate.summary import new_table
from cmx_fast.networks.biggan import Generator
from cmx_fast.nn import PowerSpectrogram
from cmx_fast.nn.power_spectrogram import standardised_log
from cmx_fast.systems.sound2scene.control_study import ControlEffect
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.sound_features import own_rank, waves_of


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
#: The most training pictures from which the classifier of real frames learns, and the most training sounds among which
#: a baseline looks for the nearest.
CLASSIFIED = 20_000
#: R@K of these K.
RANKS = (1, 5, 10)
#: Baselines of the retrieval, by the title that tables give them.
BASELINES = {
    "another frame": "another frame of the clip",
    "nearest training sound": "the nearest training sound's frame",
}


@dataclass
class Evaluation:
    """The figures of the table and the report; shares are of 1.

    Attributes:
        scenes: the number of held-out scenes with sound and picture.
        classes: the number of their classes; 1 where the data has no labels.
        retrieval: R@K of a sound's own picture and of a picture's own sound, with chance.
        baselines: R@K of a sound's own picture by other queries, which train nothing; see BASELINES.
        table: the figures of each row of ROWS.
        memory: the number of training pictures that row C retrieves from.
        compared_by: the network whose features FID and IS compare; None where there is none.
        controls: the effect of each control; none without labels, by which it is judged.
    """

    scenes: int
    classes: int
    retrieval: dict[str, float]
    baselines: dict[str, dict[str, float]]
    table: dict[str, dict[str, float]]
    memory: int
    compared_by: str | None
    controls: dict[str, ControlEffect]

    def as_dict(self) -> dict[str, Any]:
        controls = {name: asdict(effect) for name, effect in self.controls.items()}
        for figures in controls.values():
            del figures["strips"], figures["classes"]
        return {
            "scenes": self.scenes,
            "classes": self.classes,
            "retrieval": self.retrieval,
            "baselines": self.baselines,
            "rows": ROWS,
            "table": self.table,
            "memory": self.memory,
            "compared_by": self.compared_by,
            "controls": controls,
        }


def load_pictures(data: SceneData, numbers: Tensor) -> Tensor:
    """Load the pictures of these numbers, uint8 (P, 3, S, S), but for those that can't be read."""
    return torch.cat([pictures for _, pictures in data.pictures(list(numbers.split(64)))])


def generate_samples(system: Sound2Scene, features: Tensor, device: torch.device) -> Tensor:
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
        "sound_to_picture": own_recalls(sounds, pictures),
        "picture_to_sound": own_recalls(pictures, sounds),
    }
    figures = {f"{name} {k}": value for name, values in directions.items() for k, value in values.items()}
    return figures | {f"chance R@{k}": min(1.0, k / len(sounds)) for k in RANKS}


def own_recalls(queries: Tensor, gallery: Tensor) -> dict[str, float]:
    """The share of queries (N, D) with fewer than K rows of the gallery nearer than their own, of that number."""
    ranks = own_rank(queries, gallery)
    return {f"R@{k}": float((ranks < k).double().mean()) for k in RANKS}


def mean_spectra(data: SceneData, scenes: Tensor) -> tuple[Tensor, Tensor]:
    """The scenes whose sound can be read, and the mean over time of their standardised log spectra (N, 257)."""
    spectrogram = PowerSpectrogram(data.sample_rate)
    batches = [
        (index, standardised_log(spectrogram(waves)).mean(2)) for index, waves in waves_of(data, scenes)
    ]
    index, spectra = (torch.cat(part) for part in zip(*batches, strict=True))
    return index, spectra


def nearest_sounds_pictures(
    train: SceneData, train_features: Tensor, test: SceneData, scenes: Tensor
) -> Tensor:
    """For each held-out scene the picture features of the training scene that sounds most alike, (N, D).

    Sounds are alike by the cosine of their mean log spectra, less the training sounds' mean.
    """
    middle = train_features.unflatten(0, (len(train), train.moments))[:, train.moments // 2]
    known = middle.isfinite().all(1).nonzero()[:, 0]
    index, spectra = mean_spectra(
        train, known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:CLASSIFIED]]
    )
    own, queries = mean_spectra(test, scenes)
    centre = spectra.mean(0)
    nearest = rank(queries - centre, spectra - centre, 1)[:, 0]
    features = torch.full((len(test), middle.shape[1]), torch.nan)
    features[own] = middle[index[nearest]]
    return features[scenes]


def fitting_pictures(generator: Generator) -> int:
    """The number of pictures of the generator's size, three bytes a pixel, that take the memory of its weights."""
    weights = sum(value.numel() * value.element_size() for value in generator.parameters())
    return max(1, weights // (3 * generator.resolution**2))


@dataclass(frozen=True)
class PictureJudges:
    """The networks that measure a row's pictures, each None where it can't be: by labels, by CLIP, by distance."""

    classifier: FrameClassifier | None
    clip: ClipJudge | None
    networks: Networks | None
    real: Statistics | None

    def figures(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        """The figures of one row of Table 1, of pictures (N, 3, H, W) and their classes (N,)."""
        figures: dict[str, float] = {}
        if self.classifier is not None:
            classes = probabilities(self.classifier, pictures)
            figures |= {f"class R@{k}": recall(classes, labels, k) for k in (1, 5)}
        if self.clip is not None:
            names = self.clip.scores(pictures)
            figures |= {f"CLIP R@{k}": recall(names, labels, k) for k in (1, 5)}
        if self.networks is not None and self.real is not None:
            figures["FID"] = frechet_distance(self.networks, self.real, pictures)
            figures["IS"] = inception_score(self.networks, pictures)
        return figures


def choose_examples(
    test: SceneData, scenes: Tensor, labels: Tensor, frames: Tensor, rows: dict[str, Tensor]
) -> list[Example]:
    """Two scenes of each class, at most 24 in all, with their pictures in the rows of Table 1.

    Of one class alone, the first 24, by their names.
    """
    alone = len(labels.unique()) < 2
    each = 24 if alone else 2
    chosen = [int(i) for c in labels.unique()[:12] for i in (labels == c).nonzero()[:each, 0]]
    count = len(labels)
    return [
        Example(
            test.entries[int(scenes[i])].name,
            test.entries[int(scenes[i])].name if alone else test.class_names[int(labels[i])],
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
    by = "" if evaluation.compared_by is None else f"FID and IS: {evaluation.compared_by}; "
    result = new_table(
        f"{evaluation.scenes} held-out scenes of {evaluation.classes} classes",
        [name.replace(" ", "\n") for name in names],
        first="pictures of",
        caption=f"{by}C: of {evaluation.memory} training pictures",
    )
    for row, figures in evaluation.table.items():
        cells = [f"{figures[n]:.2f}" if n in ("FID", "IS") else f"{100 * figures[n]:.1f}" for n in names]
        result.add_row(f"{row}  {ROWS[row]}", *cells)
    return result


def retrieval_table(evaluation: Evaluation) -> Table:
    """R@K of a held-out sound's own picture for a terminal, beside the baselines and chance."""
    result = new_table(
        f"a sound's own picture among {evaluation.scenes}, %", [f"R@{k}" for k in RANKS], first="query"
    )
    for title, figures in retrieval_rows(evaluation):
        result.add_row(title, *(f"{100 * figures[f'R@{k}']:.1f}" for k in RANKS))
    return result


def retrieval_rows(evaluation: Evaluation) -> list[tuple[str, dict[str, float]]]:
    """The rows of the retrieval's table: title, and R@K as shares of 1."""

    def of(name: str) -> dict[str, float]:
        return {f"R@{k}": evaluation.retrieval[f"{name} R@{k}"] for k in RANKS}

    return [
        ("the sound", of("sound_to_picture")),
        *((BASELINES[name], figures) for name, figures in evaluation.baselines.items()),
        ("chance", of("chance")),
    ]
