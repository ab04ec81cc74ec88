"""Boxes (N, 4) as left, top, right, bottom: overlap, offsets from anchors, and suppression of near-duplicates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmx_fast._extras import require


def is_checked(tensor: Tensor) -> bool:
    """True where values are checked: not on a GPU, which the check would wait for, nor in a compiled graph.

    Wrong values give NaN there.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def has_area(sides: Tensor) -> Tensor:
    """A mask (N,) bool of widths and heights (N, 2) that are both finite and above 0."""
    return ((sides > 0) & sides.isfinite()).all(1)


def require_area(name: str, boxes: Tensor) -> None:
    """Refuse boxes whose sides have no finite length above 0; on a GPU only the shape is checked.

    Raises:
        ValueError: names the first such box and counts them.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be boxes (N, 4), got {tuple(boxes.shape)}")
    if not is_checked(boxes):
        return
    wrong = (~has_area(boxes[:, 2:] - boxes[:, :2])).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{name}[{row}] is {boxes[row].tolist()}, one of {len(wrong)} without area: give left, top, right, bottom "
            "with left < right and top < bottom, and leave out objects without area"
        )


def require_numbers(name: str, values: Tensor) -> None:
    """Refuse NaN, which would pass as a value below every threshold; on a GPU nothing is checked.

    Raises:
        ValueError: counts them.
    """
    if is_checked(values) and values.isnan().any():
        raise ValueError(
            f"{name} has {int(values.isnan().sum())} NaN: the network has diverged, or its input has NaN"
        )


def areas(boxes: Tensor) -> Tensor:
    """The areas (N,) of boxes (N, 4); 0 for boxes whose sides are in the wrong order."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4)."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(2)
    union = areas(one)[:, None] + areas(other)[None] - shared
    return shared / union.clamp_min(torch.finfo(shared.dtype).tiny)


def middles(boxes: Tensor) -> Tensor:
    """Boxes from corners to middle x, middle y, width and height."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def corners(boxes: Tensor) -> Tensor:
    """Boxes from middle x, middle y, width and height to corners."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def encode(boxes: Tensor, anchors: Tensor, variances: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Offsets (N, 4) of boxes from their anchors: middles in anchor sizes, sizes as logarithms, over ``variances``.

    Raises:
        ValueError: a box or an anchor without area; on a GPU its offsets are NaN.
    """
    require_area("boxes", boxes)
    require_area("anchors", anchors)
    there, here = _or_nan(middles(boxes)), _or_nan(middles(anchors))
    place = (there[:, :2] - here[:, :2]) / here[:, 2:] / variances[0]
    size = (there[:, 2:] / here[:, 2:]).log() / variances[1]
    return torch.cat([place, size], 1)


def _or_nan(boxes: Tensor) -> Tensor:
    """The boxes, by middle and sides, with NaN for those without area."""
    return boxes.where(has_area(boxes[:, 2:])[:, None], torch.nan)


def decode(
    offsets: Tensor,
    anchors: Tensor,
    variances: tuple[float, float] = (1.0, 1.0),
    largest: float = math.log(1000 / 16),
) -> Tensor:
    """Boxes (N, 4) from offsets (N, 4) and anchors, the inverse of :func:`encode`; growth is held at e ** ``largest``.

    Raises:
        ValueError: an anchor without area; on a GPU its box is NaN.
    """
    require_area("anchors", anchors)
    here = _or_nan(middles(anchors))
    place = here[:, :2] + offsets[:, :2] * variances[0] * here[:, 2:]
    size = here[:, 2:] * (offsets[:, 2:] * variances[1]).clamp(max=largest).exp()
    return corners(torch.cat([place, size], 1))


def nms(boxes: Tensor, scores: Tensor, threshold: float, most: int | None = None) -> Tensor:
    """Non-maximum suppression: the indices of the kept boxes, best first, int64.

    A box goes when its overlap with a better one that stays is above ``threshold``. Of equal scores the lower index
    comes first. torchvision's, with these checks; a box without area suppresses none.

    Raises:
        MissingExtraError: torchvision is not installed.
        ValueError: another number of scores than of boxes, NaN (not checked on a GPU), or a threshold outside [0, 1].
    """
    if scores.shape != boxes.shape[:1] or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"boxes must be (N, 4) and scores (N,), got {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    require_numbers("boxes", boxes)
    require_numbers("scores", scores)
    precise = torch.promote_types(boxes.dtype, torch.float32)
    kept = require("torchvision.ops", "train").nms(boxes.to(precise), scores.to(precise), threshold)
    return kept[:most]
