"""Clusters against classes: how they meet, who is matched with whom, and what that is worth."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

from cmx_fast.ops import linear_assignment

#: Colours of the first classes, RGB; more are spread over the hues.
FIRST_COLOURS = ((32, 36, 43), (226, 104, 58), (60, 140, 200))
#: A cluster that is matched with no class, and a pixel without a label.
NO_COLOUR = (200, 203, 207)


def confusion(labels: Tensor, masks: Tensor, clusters: int, classes: int) -> Tensor:
    """How many pixels of each cluster belong to each class, (K, classes) int64.

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
    """The class of each cluster, (K,) int64, -1 for none: one to one, so that most pixels agree (Hungarian)."""
    clusters, classes = linear_assignment(counts.double(), maximize=True)
    result = clusters.new_full((len(counts),), -1)
    result[clusters] = classes
    return result


def scores(counts: Tensor) -> dict[str, float]:
    """Figures of a (K, classes) table of :func:`confusion`.

    Returns:
        "accuracy": the share of pixels whose cluster is matched with their class. And three readings of the mean
        intersection over union: "miou_matched", over the classes that have pixels; "miou_clusters", over the K clusters
        (or the classes, if there are more), unmatched ones counting 0, as PiCIE's code averages and the C2L paper's
        figures must have been; "miou_majority", over the classes, each cluster given to the class it meets most, so
        that several may share one.
    """
    counts = counts.double()
    merged = merge(counts, match(counts))
    overlap = merged.diagonal()
    union = merged.sum(1) + counts.sum(0) - overlap
    present = counts.sum(0) > 0
    iou = overlap / union.clamp_min(1)
    by_majority = merge(counts, counts.argmax(1))
    majority = by_majority.diagonal() / (
        by_majority.sum(1) + counts.sum(0) - by_majority.diagonal()
    ).clamp_min(1)
    return {
        "accuracy": float(overlap.sum() / counts.sum()),
        "miou_matched": float(iou[present].mean()),
        "miou_clusters": float(iou.sum() / max(counts.shape)),
        "miou_majority": float(majority[present].mean()),
    }


def merge(counts: Tensor, classes: Tensor) -> Tensor:
    """(K, classes) to (classes, classes): clusters added up by the class they are given to, those of -1 left out."""
    given = classes >= 0
    return counts.new_zeros(counts.shape[1], counts.shape[1]).index_add_(0, classes[given], counts[given])


def palette(classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class, RGB in bytes."""
    more = [
        colorsys.hsv_to_rgb(0.61803 * i % 1, 0.55, 0.85) for i in range(max(0, classes - len(FIRST_COLOURS)))
    ]
    return [*FIRST_COLOURS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)][:classes]


def colour(labels: Tensor, classes: int) -> Tensor:
    """A label map (H, W) as a picture (H, W, 3) uint8; -1 in light grey."""
    colours = torch.tensor([*palette(classes), NO_COLOUR], dtype=torch.uint8)
    return colours[labels]
