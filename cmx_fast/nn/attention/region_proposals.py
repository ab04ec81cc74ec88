"""Faster R-CNN's hard attention: a small network over a map's anchors proposes where objects are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.attention.boxes import (
    box_iou,
    decode,
    encode,
    has_area,
    nms,
    require_area,
    require_numbers,
)

#: The end of the squared part of the loss on boxes (sigma = 3).
BETA = 1 / 9


class Proposed(NamedTuple):
    """Scores (B, A h w) as logits, offsets (B, A h w, 4), and their anchors (A h w, 4) in pixels."""

    logits: Tensor
    offsets: Tensor
    anchors: Tensor


class RegionProposals(nn.Module):
    """Ren et al., "Faster R-CNN", NeurIPS 2015, section 3: (B, C, h, w) to a score and a box for every anchor.

    A 3 x 3 convolution of ``width`` channels, then a score (one logit instead of the paper's two-way softmax, which is
    the same) and four offsets for each of nine anchors per place.

    Args:
        channels: C. stride: pixels of the picture per place of the map.
        sizes, ratios: the anchors' square roots of areas in pixels, and heights over widths.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 16,
        sizes: Sequence[float] = (128, 256, 512),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        width: int = 512,
    ):
        super().__init__()
        if stride <= 0 or not sizes or not ratios or min(*sizes, *ratios) <= 0:
            raise ValueError(f"stride, sizes and ratios must be above 0; got {stride}, {sizes} and {ratios}")
        self.stride = stride
        shapes = torch.tensor([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios])
        self.register_buffer("shapes", shapes, persistent=False)
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.score = nn.Conv2d(width, len(shapes), 1)
        self.offset = nn.Conv2d(width, 4 * len(shapes), 1)
        for layer in (self.conv, self.score, self.offset):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def anchors(self, height: int, width: int) -> Tensor:
        """The anchors (A h w, 4): every shape around the middle of each place, row by row."""
        shapes: Tensor = self.shapes  # type: ignore[assignment]
        y, x = ((torch.arange(n, device=shapes.device) + 0.5) * self.stride for n in (height, width))
        middle = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], 2).view(-1, 1, 2)
        half = shapes[None] / 2
        return torch.cat([middle - half, middle + half], 2).view(-1, 4)

    def forward(self, x: Tensor) -> Proposed:
        hidden = F.relu(self.conv(x))
        logits = self.score(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.offset(hidden).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
        return Proposed(logits, offsets, self.anchors(*x.shape[2:]).to(logits.dtype))


def proposals(
    proposed: Proposed,
    size: tuple[int, int],
    *,
    before: int = 2000,
    after: int = 1000,
    overlap: float = 0.7,
    least: float = 1.0,
) -> list[tuple[Tensor, Tensor]]:
    """The boxes (N, 4) of each picture within (height, width) ``size``, and their scores (N,), best first.

    All anchors are scored; the ``before`` best are cut to the picture, suppressed at ``overlap``, and the ``after``
    best stay (2000 and 1000 in training; testing takes 300). Boxes with a side below ``least`` pixels go.
    """
    height, width = size
    limits = proposed.anchors.new_tensor([width, height, width, height])
    proposals_of_pictures = []
    for logits, offsets in zip(proposed.logits, proposed.offsets, strict=True):
        require_numbers("proposed.logits", logits)
        require_numbers("proposed.offsets", offsets)
        best = logits.sort(descending=True, stable=True).indices[:before]
        boxes = decode(offsets[best], proposed.anchors[best]).clamp_min(0).minimum(limits)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)
        boxes, scores = boxes[large], logits[best][large].sigmoid()
        kept = nms(boxes, scores, overlap, after)
        proposals_of_pictures.append((boxes[kept], scores[kept]))
    return proposals_of_pictures


def match_anchors(anchors: Tensor, objects: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The label of each anchor, 1 (object), 0 (background) or -1 (neither), and its object's number.

    1: overlap of 0.7 or more, or the best of some object; 0: below 0.3 with all. Anchors that leave the picture
    (height, width) count as neither.

    Raises:
        ValueError: an anchor or an object without area.
    """
    require_area("anchors", anchors)
    require_area("objects", objects)
    height, width = size
    labels = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
    if not len(objects):
        return labels.masked_fill(inside, 0), torch.zeros_like(labels)
    share = box_iou(anchors, objects).masked_fill(~inside[:, None], -1)
    best, object_index = share.max(1)
    labels[inside & (best < 0.3)] = 0
    highest = share.max(0).values
    labels[((share == highest) & (highest > 0)).any(1)] = 1
    labels[best >= 0.7] = 1
    return labels, object_index


def proposal_loss(
    proposed: Proposed,
    objects: Sequence[Tensor],
    size: tuple[int, int],
    *,
    sampled: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss of eq. 1, its mean over pictures, 0-d.

    Binary cross-entropy over ``sampled`` anchors of each picture, at most half of them objects', and smooth L1 of the
    objects' offsets over the same number.
    """
    losses = []
    for logits, offsets, boxes in zip(proposed.logits, proposed.offsets, objects, strict=True):
        labels, object_index = match_anchors(proposed.anchors, boxes, size)
        positive, negative = (_some((labels == kind).nonzero()[:, 0], generator) for kind in (1, 0))
        positive = positive[: sampled // 2]
        negative = negative[: sampled - len(positive)]
        chosen = torch.cat([positive, negative])
        loss = F.binary_cross_entropy_with_logits(
            logits[chosen], labels[chosen].to(logits.dtype), reduction="sum"
        )
        if len(positive):
            wanted = encode(boxes[object_index[positive]].to(offsets.dtype), proposed.anchors[positive])
            loss = loss + F.smooth_l1_loss(offsets[positive], wanted, beta=BETA, reduction="sum")
        # Off the CPU an object without area is not refused, and no anchor overlaps it.
        known = has_area(boxes[:, 2:] - boxes[:, :2]).all()
        losses.append(torch.where(known, loss / max(1, len(chosen)), torch.nan))
    return torch.stack(losses).mean()


def _some(indices: Tensor, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(len(indices), generator=generator).to(indices.device)
    return indices[order]
