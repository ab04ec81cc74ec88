"""SSD's hard attention: a fixed set of boxes at several scales, matched to objects, with mining of hard negatives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.attention.boxes import (
    box_iou,
    corners,
    decode,
    encode,
    is_checked,
    nms,
    require_area,
    require_numbers,
)

#: SSD300's: sides of its six maps, steps in pixels, sizes of the boxes, and aspect ratios beside 1.
MAPS = (38, 19, 10, 5, 3, 1)
STEPS = (8, 16, 32, 64, 100, 300)
SIZES = (30, 60, 111, 162, 213, 264, 315)
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
#: Divisors of the offsets of middles and of sizes.
VARIANCES = (0.1, 0.2)


class Matched(NamedTuple):
    """The targets of every default box: its class (0: background), and its offsets to its object."""

    labels: Tensor  # (P,) int64
    offsets: Tensor  # (P, 4)


class DefaultBoxes(nn.Module):
    """Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016: 8,732 boxes of a picture of 300 pixels.

    Each place of each map has one box of the map's size, one of the geometric mean with the next size, and two per
    aspect ratio. Boxes are shares of the picture, (P, 4) corners in [0, 1].

    Args:
        picture: pixels a side; maps, steps, sizes (one more than maps), ratios: as in the module's constants.
        threshold: overlap from which a box is an object's (0.5).
    """

    boxes: Tensor

    def __init__(
        self,
        picture: int = 300,
        maps: Sequence[int] = MAPS,
        steps: Sequence[float] = STEPS,
        sizes: Sequence[float] = SIZES,
        ratios: Sequence[Sequence[float]] = RATIOS,
        threshold: float = 0.5,
    ):
        super().__init__()
        if not len(maps) == len(steps) == len(ratios) == len(sizes) - 1:
            raise ValueError(
                f"maps, steps and ratios must be as many, and sizes one more; got {len(maps)}, {len(steps)}, "
                f"{len(ratios)} and {len(sizes)}"
            )
        numbers = [picture, *maps, *steps, *sizes, *itertools.chain(*ratios)]
        if min(numbers) <= 0:
            raise ValueError(
                f"picture, maps, steps, sizes and ratios must be above 0; got {min(numbers)} among them"
            )
        self.threshold = threshold
        rows = []
        for side, step, (size, larger), map_ratios in zip(
            maps, steps, itertools.pairwise(sizes), ratios, strict=True
        ):
            shapes = [(size, size), ((size * larger) ** 0.5,) * 2]
            for ratio in map_ratios:
                shapes += [(size * ratio**0.5, size / ratio**0.5), (size / ratio**0.5, size * ratio**0.5)]
            for row, column in itertools.product(range(side), repeat=2):
                x, y = ((i + 0.5) * step / picture for i in (column, row))
                rows += [(x, y, w / picture, h / picture) for w, h in shapes]
        boxes = corners(torch.tensor(rows).clamp(0, 1))
        self.register_buffer("boxes", boxes, persistent=False)

    def __len__(self) -> int:
        return len(self.boxes)

    def match(self, objects: Tensor, labels: Tensor) -> Matched:
        """Targets for the objects (N, 4) of one picture with classes (N,) from 1 on.

        A box belongs to the object that it overlaps most, if the overlap reaches the threshold. Each object also has
        the box that overlaps it most, whatever the overlap.

        Raises:
            ValueError: an object without area, or another number of labels; a label below 1. On a GPU the offsets of
                an object without area are NaN.
        """
        require_area("objects", objects)
        if labels.shape != objects.shape[:1]:
            raise ValueError(f"labels must be ({len(objects)},), one per object; got {tuple(labels.shape)}")
        if is_checked(labels) and (labels < 1).any():
            raise ValueError(f"labels must be from 1 on, 0 is the background; got {int(labels.min())}")
        if objects.shape[0] == 0:
            return Matched(
                torch.zeros(len(self), dtype=torch.int64, device=self.boxes.device),
                torch.zeros_like(self.boxes),
            )
        share = box_iou(objects, self.boxes)
        best, object_of = share.max(0)
        own = share.argmax(1)
        # The later of two objects wins a box that is best for both, as in the authors' code.
        best = best.index_fill(0, own, 2.0)
        numbers = torch.arange(len(objects), device=object_of.device)
        object_of = object_of.scatter_reduce(0, own, numbers, "amax", include_self=False)
        classes = torch.where(best >= self.threshold, labels[object_of], 0)
        return Matched(classes, encode(objects[object_of], self.boxes, VARIANCES))

    def detect(
        self, offsets: Tensor, scores: Tensor, *, least: float = 0.01, overlap: float = 0.45, most: int = 200
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (M, 4), classes (M,) and scores (M,) of one picture's predictions, (P, 4) and (P, classes).

        They are the scores above ``least`` of each class but 0, after suppression at ``overlap``, and of those the
        ``most`` best.
        """
        require_numbers("offsets", offsets)
        require_numbers("scores", scores)
        boxes = decode(offsets, self.boxes, VARIANCES)
        detections = []
        for label in range(1, scores.shape[1]):
            above = (scores[:, label] > least).nonzero()[:, 0]
            kept = above[nms(boxes[above], scores[above, label], overlap, most)]
            detections.append((boxes[kept], torch.full_like(kept, label), scores[kept, label]))
        joined = [torch.cat(part) for part in zip(*detections, strict=True)]
        order = joined[2].sort(descending=True, stable=True).indices[:most]
        return joined[0][order], joined[1][order], joined[2][order]


def multibox_loss(offsets: Tensor, logits: Tensor, matched: Sequence[Matched], negatives: int = 3) -> Tensor:
    """The loss of eq. 1: smooth L1 of offsets and cross-entropy of classes over the matched boxes' number; 0-d.

    Only the hardest background boxes count, ``negatives`` for each matched box of their picture.

    Args:
        offsets: (B, P, 4), logits: (B, P, classes).

    Raises:
        ValueError: targets of another shape, that are not finite, or of a class that ``logits`` does not have. On a GPU
            the loss is NaN.
    """
    if len(matched) != len(offsets):
        raise ValueError(f"matched must be {len(offsets)}, one per picture; got {len(matched)}")
    labels = torch.stack([m.labels for m in matched])
    wanted = torch.stack([m.offsets for m in matched])
    if offsets.shape != wanted.shape or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"offsets must be {tuple(wanted.shape)} and logits {tuple(labels.shape)} by classes, as matched; got "
            f"{tuple(offsets.shape)} and {tuple(logits.shape)}"
        )
    known = ((labels >= 0) & (labels < logits.shape[-1])).all() & wanted.isfinite().all()
    if is_checked(labels) and not known:
        lost = int((~wanted.isfinite()).sum())
        raise ValueError(
            f"matched must have labels in [0, {logits.shape[-1]}) and finite offsets; got labels "
            f"{int(labels.min())} to {int(labels.max())} and {lost} offsets that are not: an object without area?"
        )
    labels = labels.clamp(0, logits.shape[-1] - 1)
    positive = labels > 0
    count = positive.sum(1)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    hardest = losses.detach().masked_fill(positive, -torch.inf).argsort(1, descending=True).argsort(1)
    chosen = positive | (hardest < (negatives * count).clamp(max=labels.shape[1] - 1)[:, None])
    box_losses = F.smooth_l1_loss(offsets, wanted, reduction="none").sum(2)
    total = torch.where(chosen, losses, 0).sum() + torch.where(positive, box_losses, 0).sum()
    return torch.where(known, total / count.sum().clamp_min(1), torch.nan)
