"""Compares clusters with classes: counts how they meet, matches them, and scores the match."""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import torch
from torch import Tensor

from cmx_fast._extras import require

#: Colours of the first classes, RGB; more are spread over the hues.
FIRST_COLOURS = ((32, 36, 43), (226, 104, 58), (60, 140, 200))
#: Colour of clusters that are matched with no class, and of pixels without a label.
NO_COLOUR = (200, 203, 207)


def confusion(labels: Tensor, masks: Tensor, clusters: int, classes: int) -> Tensor:
    """Count the pixels of each cluster in each class, (K, classes) int64.

    ``labels`` int64 in [0, K) and ``masks`` int64 in [0, classes), of one shape; pixels whose mask is negative are left
    out.

    Raises:
        ValueError: the shapes differ, or a label or class is out of range.
    """
    if labels.shape != masks.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and masks {tuple(masks.shape)}; they must be equal"
        )
    counted = masks >= 0
    labels, masks = labels[counted], masks[counted]
    for name, values, count in (("labels", labels, clusters), ("masks", masks, classes)):
        if values.numel() and not 0 <= values.min() <= values.max() < count:
            raise ValueError(f"{name} must be below {count}; found {values.min()} to {values.max()}")
    return torch.bincount(labels * classes + masks, minlength=clusters * classes).view(clusters, classes)


def match(counts: Tensor) -> Tensor:
    """Match clusters with classes one to one so that most pixels agree (Hungarian): classes (K,) int64, -1 for none."""
    optimize = require("scipy.optimize", "train")  # here, since it takes a second to import
    clusters, classes = optimize.linear_sum_assignment(counts.double().cpu().numpy(), maximize=True)
    result = torch.full((len(counts),), -1, dtype=torch.int64)
    result[torch.from_numpy(clusters)] = torch.from_numpy(classes)
    return result.to(counts.device)


def scores(counts: Tensor) -> dict[str, float]:
    """Score a (K, classes) table of :func:`confusion`.

    Returns:
        "accuracy", the share of pixels whose cluster is matched with their class; and three readings of the mean
        intersection over union. "miou_matched" is over the classes that have pixels. "miou_clusters" is over the K
        clusters, or the classes if there are more, where unmatched ones count 0: so PiCIE's code averages, and so the
        C2L paper's figures must have been. "miou_majority" is over the classes; each cluster goes to the class that it
        meets most, so several may share one, and "accuracy_majority" is the share of pixels that are right then.
    """
    counts = counts.double()
    matched, majority = merge(counts, match(counts)), merge(counts, counts.argmax(1))
    present, total = counts.sum(0) > 0, counts.sum()
    iou = class_ious(matched, counts.sum(0))
    return {
        "accuracy": float(matched.diagonal().sum() / total),
        "miou_matched": float(iou[present].mean()),
        "miou_clusters": float(iou.sum() / max(counts.shape)),
        "accuracy_majority": float(majority.diagonal().sum() / total),
        "miou_majority": float(class_ious(majority, counts.sum(0))[present].mean()),
    }


def class_ious(merged: Tensor, pixels: Tensor) -> Tensor:
    """Intersection over union of each class, from the table of :func:`merge` and the pixels (classes,) of each class.

    Pixels of unmatched clusters are in ``pixels`` alone. A class without pixels, given or true, has 0.
    """
    overlap = merged.diagonal()
    return overlap / (merged.sum(1) + pixels - overlap).clamp_min(1)


class Agreement(NamedTuple):
    """Predicted classes against true ones.

    Attributes:
        accuracy: the share of pixels whose class is predicted.
        iou: (classes,) intersection over union; NaN for a class that is neither there nor predicted.
        recall: (classes,) the share of a class's pixels that are predicted so; NaN for a class that is not there.
    """

    accuracy: float
    iou: Tensor
    recall: Tensor


def agreement(counts: Tensor) -> Agreement:
    """Score a (classes, classes) table of :func:`confusion` whose rows are predicted classes, and not clusters."""
    counts = counts.double()
    right, predicted, true = counts.diagonal(), counts.sum(1), counts.sum(0)
    return Agreement(float(right.sum() / counts.sum()), right / (predicted + true - right), right / true)


def merge(counts: Tensor, classes: Tensor) -> Tensor:
    """Add up the clusters that are given to the same class: (K, classes) to (classes, classes), without those of -1."""
    given = classes >= 0
    return counts.new_zeros(counts.shape[1], counts.shape[1]).index_add_(0, classes[given], counts[given])


def palette(classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class, RGB in bytes."""
    more = [
        colorsys.hsv_to_rgb(0.61803 * i % 1, 0.55, 0.85) for i in range(max(0, classes - len(FIRST_COLOURS)))
    ]
    return [*FIRST_COLOURS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)][:classes]


def colour(labels: Tensor, classes: int) -> Tensor:
    """Paint a label map (H, W) as a picture (H, W, 3) uint8; -1 is light grey."""
    colours = torch.tensor([*palette(classes), NO_COLOUR], dtype=torch.uint8)
    return colours[labels]
