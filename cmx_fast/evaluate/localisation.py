"""Judges maps of sounding places: against people's boxes, and by what they answer to sounds that no place makes.

Boxes are shares of a picture's sides: left, top, right and bottom, each in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pixels along an edge of the square on which boxes and maps meet (the public protocol's).
SIDE = 224
#: A map hits from this consensus intersection over union on.
HIT = 0.5
#: Thresholds that :func:`best_threshold` tries.
CANDIDATES = 64
#: Maps that are enlarged at a time.
CHUNK = 64


def consensus(boxes: Tensor, agreeing: int = 1, side: int = SIDE) -> Tensor:
    """The truth that boxes make, float32 (side, side) in [0, 1]: min(boxes over the pixel / agreeing, 1).

    With several people's boxes and ``agreeing`` = 2 a pixel counts whole where two of them marked it, and half where
    one did (Senocak et al., CVPR 2018). With 1 it is the union, as of one person's boxes. Edges are rounded down to
    pixels, as the public code does.

    Args:
        boxes: (n, 4).

    Raises:
        ValueError: boxes of another shape, or ``agreeing`` below 1.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (n, 4), got {tuple(boxes.shape)}")
    if agreeing < 1:
        raise ValueError(f"agreeing must be at least 1, got {agreeing}")
    marked = torch.zeros(side, side)
    for left, top, right, bottom in (boxes.double().clamp(0, 1) * side).long().tolist():
        marked[top:bottom, left:right] += 1
    return (marked / agreeing).clamp_max(1)


def consensus_iou(regions: Tensor, truth: Tensor) -> Tensor:
    """cIoU of regions, bool (N, S, S), and truths (N, S, S): float32 (N,), 0 where nothing is true.

    The truth within the region, over the whole truth plus the region's pixels where there is none.
    """
    regions = regions.to(truth.dtype)
    inside = (regions * truth).sum((1, 2))
    outside = (regions * (truth == 0)).sum((1, 2))
    return inside / (truth.sum((1, 2)) + outside).clamp_min(1e-12)


def enlarge(maps: Tensor, side: int = SIDE) -> Tensor:
    """Maps (N, h, w) as float32 (N, side, side), bilinear."""
    return F.interpolate(maps.float()[:, None], (side, side), mode="bilinear")[:, 0]


def larger_half(maps: Tensor) -> Tensor:
    """The region of each map (N, S, S) that lies above its median, bool: half the picture, whatever sounds."""
    values = maps.flatten(1)
    middle = values.sort(1).values[:, values.shape[1] // 2]
    return maps > middle[:, None, None]


def success(ious: Tensor) -> dict[str, float]:
    """The public figures of cIoU values (N,).

    Returns:
        "cIoU", the share of at least 0.5, and "AUC", the area below the share of at least t for t in 0, 0.05, ..., 1.
    """
    values = ious.double()
    thresholds = torch.arange(21, dtype=torch.float64) / 20
    # float32's cIoU of just 0.15 is below 3 / 20.
    shares = (values[:, None] >= thresholds - 1e-6).double().mean(0)
    return {"cIoU": float(shares[10]), "AUC": float(torch.trapezoid(shares, thresholds))}


def best_threshold(maps: Tensor, truth: Sequence[Tensor]) -> float:
    """The threshold above which the maps' regions hit most often; of several the highest.

    One threshold for all pictures, so that a map can also say that nothing sounds. It is chosen on maps of own sounds
    alone, among evenly spaced values from the lowest to the highest one; silence and noise play no role.

    Args:
        maps: (N, h, w), of pictures that a table is not of.
        truth: N of :func:`consensus`.

    Raises:
        ValueError: no maps, or not as many truths.
    """
    if not len(maps) or len(maps) != len(truth):
        raise ValueError(
            f"maps and truth must be equally many and not none; got {len(maps)} and {len(truth)}"
        )
    candidates = torch.linspace(float(maps.min()), float(maps.max()), CANDIDATES)
    hits = torch.zeros(CANDIDATES, dtype=torch.int64)
    for large, true in _chunks(maps, truth):
        for number, threshold in enumerate(candidates.tolist()):
            hits[number] += (consensus_iou(large >= threshold, true) >= HIT).sum()
    best = int((hits == hits.max()).nonzero().max())
    return float(candidates[best])


def answers(
    own: Tensor, truth: Sequence[Tensor], negatives: Mapping[str, Tensor], threshold: float
) -> dict[str, float]:
    """How maps answer under one threshold: own sounds should have a region on their object, the others none.

    A region is what reaches the threshold. An own sound whose region hits (cIoU of at least 0.5) is a true positive,
    one whose region misses a false positive, and one without a region a false negative; a negative with a region is a
    false positive.

    Args:
        own: (N, h, w), maps of pictures with their own sound.
        truth: N of :func:`consensus`.
        negatives: maps (N, h, w) of the same pictures with sounds of no place in them, by kind.

    Returns:
        "hits", the share of own sounds whose region hits. For each kind: "<kind> false positives", the share of
        pictures with a region; "<kind> area", the mean share of the picture that it takes; "<kind> F1", of own sounds
        and this kind together; "<kind> below own", the share of pictures where the map peaks lower than with the own
        sound, half of it where equal, which needs no threshold: 0.5 is a map that does not listen.
    """
    hit, answered = [], []
    for large, true in _chunks(own, truth):
        regions = large >= threshold
        hit.append(consensus_iou(regions, true) >= HIT)
        answered.append(regions.flatten(1).any(1))
    hits, regions = torch.cat(hit), torch.cat(answered)
    positive, missed, wrong = (int(x.sum()) for x in (hits, ~regions, regions & ~hits))
    figures = {"hits": positive / len(own)}
    for kind, maps in negatives.items():
        areas = torch.cat([(large >= threshold).double().mean((1, 2)) for large, _ in _chunks(maps, truth)])
        false = int((areas > 0).sum())
        higher, peak = own.flatten(1).amax(1).double(), maps.flatten(1).amax(1).double()
        figures |= {
            f"{kind} false positives": false / len(maps),
            f"{kind} area": float(areas.mean()),
            f"{kind} F1": 2 * positive / max(1, 2 * positive + false + wrong + missed),
            f"{kind} below own": float(((peak < higher).double() + (peak == higher).double() / 2).mean()),
        }
    return figures


def _chunks(maps: Tensor, truth: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Enlarged maps and their truths, some at a time."""
    for first in range(0, len(maps), CHUNK):
        yield enlarge(maps[first : first + CHUNK]), torch.stack(list(truth[first : first + CHUNK]))
