"""Measures C2L, the rows of its ablation and its baselines on held-out pictures: clusters against classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from cmx_fast.data.sets.atr import ATR
from cmx_fast.data.sets.labelled_pictures import class_folders
from cmx_fast.data.sets.masked_pictures import MASKED_SETS
from cmx_fast.data.sets.square_pictures import SquarePictures
from cmx_fast.evaluate import segmentation
from cmx_fast.evaluate.summary import SeedScores, new_table
from cmx_fast.networks.fpn import MapShape
from cmx_fast.systems.c2l.baselines import BASELINES
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.dff import DFF
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.options import NAMES
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.recipe import C2LRecipe

#: The measures of a model with their titles: clusters matched one to one, then each with the class that it meets most.
MEASURES = {
    "accuracy": "acc. 1:1",
    "miou_matched": "mIoU 1:1",
    "miou_clusters": "mIoU / K",
    "accuracy_majority": "acc. maj.",
    "miou_majority": "mIoU maj.",
}

#: Pictures in the report.
EXAMPLES = 8
#: Clusters whose shares a terminal shows.
MOST_SHOWN = 10
#: The file of a seed that holds the ResNet before training, which the baselines take.
FIRST = "encoder"
#: The file of a run that holds the class of each cluster: by model, of each seed.
CLUSTERS_FILE = "clusters.json"


def new_model(name: str, recipe: C2LRecipe, shapes: Sequence[MapShape] | None = None) -> PiCIE | DFF:
    """A model of that name with fresh weights, on pictures or on a fixed encoder's maps of these shapes."""
    if name == "dff":
        return DFF(recipe, shapes)
    return PiCIE(recipe, shapes) if name == "picie" else C2L(recipe, name, shapes)


def scores(counts: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """The measures of a (K, classes) table, and "iou <class>" of each class by majority."""
    merged = segmentation.merge(counts.double(), counts.argmax(1))
    ious = segmentation.class_ious(merged, counts.double().sum(0))
    by_class = {f"iou {name}": float(iou) for name, iou in zip(class_names, ious, strict=True)}
    return {**segmentation.scores(counts), **by_class}


def cluster_classes(counts: Tensor, class_names: Sequence[str]) -> list[str | None]:
    """The class that each cluster of a (K, classes) table meets most; None of a cluster that is nowhere."""
    return [class_names[int(row.argmax())] if row.any() else None for row in counts]


@torch.no_grad()
def predictions(model: PiCIE | DFF, pictures: Pictures, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cluster every picture, not augmented and in float32: yields indices (B,) and clusters (B, S, S) int64.

    The clusters have the masks' size. ``seed`` starts DFF's factorisation, which takes all pictures together; the other
    models see one batch at a time.
    """
    training = model.training
    model.eval()
    size = (model.recipe.size, model.recipe.size)
    if isinstance(model, DFF):
        images = (batch for _, batch in pictures.in_order())
        heat = model.heat_maps(images, torch.Generator().manual_seed(seed))
        for index in torch.arange(len(pictures)).split(32):
            yield index, F.interpolate(heat[index], size, mode="bilinear").argmax(1)
    else:
        for index, batch in pictures.in_order():
            yield index, model.logits(batch, size).argmax(1).cpu()
    model.train(training)


def segment(
    model: PiCIE | DFF, pictures: Pictures, seed: int, examples: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Count the split's pixels of each cluster in each class, (K, classes) int64; keep the examples' label maps."""
    counts = torch.zeros(model.recipe.test_clusters, len(pictures.class_names), dtype=torch.int64)
    kept: dict[int, Tensor] = {}
    for index, labels in predictions(model, pictures, seed):
        counts += segmentation.confusion(labels, pictures.masks(index), *counts.shape)
        kept |= {i: row for i, row in zip(index.tolist(), labels, strict=True) if i in examples}
    return counts, torch.stack([kept[i] for i in examples]) if examples else counts.new_zeros(0)


def cluster_pixels(
    model: PiCIE | DFF, pictures: Pictures, seed: int, examples: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Count the split's pixels of each cluster, (K,) int64; keep the examples' label maps."""
    counts = torch.zeros(model.recipe.test_clusters, dtype=torch.int64)
    kept: dict[int, Tensor] = {}
    for index, labels in predictions(model, pictures, seed):
        counts += labels.flatten().bincount(minlength=len(counts))
        kept |= {i: row for i, row in zip(index.tolist(), labels, strict=True) if i in examples}
    return counts, torch.stack([kept[i] for i in examples])


def evenly_spaced(pictures: int) -> list[int]:
    """The numbers of the pictures that a report shows."""
    return list(range(0, pictures, max(1, pictures // EXAMPLES)))[:EXAMPLES]


@dataclass
class Clusters:
    """The clusters of pictures without masks."""

    shares: dict[str, list[list[float]]]  # by model and seed: each cluster's share of the pixels
    split: str
    examples: list[int]  # pictures shown in the report
    shown: dict[str, Tensor]  # by model: the first seed's clusters of them, (examples, S, S)

    def as_dict(self) -> dict[str, Any]:
        return {"split": self.split, "cluster shares": self.shares}


def shares_table(found: Clusters, pictures: int) -> Table:
    """The first seed's clusters for a terminal, the largest first: percent of the pixels."""
    rows = {name: sorted(seeds[0], reverse=True)[:MOST_SHOWN] for name, seeds in found.shares.items()}
    numbers = map(str, range(2, 1 + max(map(len, rows.values()))))
    title = f"{found.split}: {pictures} pictures, % of pixels by cluster"
    table = new_table(title, ["largest", *numbers])
    for name, largest in rows.items():
        table.add_row(NAMES[name][1], *(f"{100 * share:.0f}" for share in largest))
    return table


@dataclass
class Evaluation:
    """The figures of the table and the report."""

    scores: SeedScores  # of the models
    baselines: SeedScores
    split: str
    clusters: int
    class_names: list[str]
    largest_class: float  # the accuracy of giving every pixel the most frequent class
    examples: list[int]  # pictures shown in the report
    shown: dict[
        str, Tensor
    ]  # by model: the first seed's classes of them, (examples, S, S); -1 where unmatched

    def as_dict(self) -> dict[str, Any]:
        measures = [*MEASURES, *(f"iou {name}" for name in self.class_names)]
        return {
            "protocol": "clusters matched one to one with classes over the whole split (Hungarian); majority: each "
            "cluster with the class that it meets most",
            "split": self.split,
            "clusters": self.clusters,
            "largest_class": self.largest_class,
            **self.scores.as_dict(measures),
            "baselines": self.baselines.as_dict(measures),
        }


def table(evaluation: Evaluation, pictures: int) -> Table:
    """Table 1 for a terminal, the baselines below it: percent, mean and spread over the seeds."""
    both = SeedScores([])
    both.by_model = {**evaluation.scores.by_model, **evaluation.baselines.by_model}
    title = f"{evaluation.split}: {pictures} pictures, {evaluation.clusters} clusters, %"
    return both.table(title, MEASURES, {name: short for name, (_, short) in {**NAMES, **BASELINES}.items()})


def open_split(
    dataset: str,
    root: Path,
    split: str,
    recipe: C2LRecipe,
    device: torch.device | str,
    *,
    merge: Path | None = None,
    skip_chictopia: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Pictures:
    """Open one split with the recipe's numbers.

    Args:
        dataset: "atr", "voc", or "folder": where there is a folder ``train/masks``, pictures with masks
            (:func:`cmx_fast.data.sets.masked_pictures.folder`), else any pictures
            (:func:`cmx_fast.data.sets.labelled_pictures.class_folders`).
        merge, skip_chictopia: as of :class:`cmx_fast.data.sets.atr.ATR`, which alone has them.

    Raises:
        ValueError: an option that the layout does not have, or as the reader of the layout.
    """
    opened: SquarePictures
    if dataset == "atr":
        opened = ATR(
            root, split, size=recipe.size, merge=merge, skip_chictopia=skip_chictopia, skip_bad=skip_bad
        )
    elif merge is not None or skip_chictopia:
        raise ValueError(
            f"--merge and --skip-chictopia are of ATR's pictures; the layout of {root} is {dataset}"
        )
    elif dataset == "voc" or (root / "train" / "masks").is_dir():
        opened = MASKED_SETS[dataset](root, split, size=recipe.size, skip_bad=skip_bad)
    else:
        opened = class_folders(root, split, size=recipe.size, skip_bad=skip_bad)
    return Pictures(opened, cache=recipe.cache, backend=recipe.backend, device=device, workers=workers)
