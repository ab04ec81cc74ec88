"""Average precision of detected boxes, as PASCAL VOC measures it from 2010 on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmx_fast.nn.attention import box_iou


class Boxes(NamedTuple):
    """The detections of a picture, with scores, or its objects, without.

    Attributes:
        boxes: (N, 4) left, top, right, bottom. labels: (N,) int64.
        scores: (N,).
        difficult: (N,) bool, objects that are neither asked for nor wrong to find.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    difficult: Tensor | None = None


def average_precision(
    detections: Sequence[Boxes], objects: Sequence[Boxes], label: int, overlap: float = 0.5
) -> float:
    """The area under precision by recall of one class over all pictures; NaN without objects of the class.

    From the best score on, a detection is right if the object of its picture that it overlaps most has this class, the
    overlap is at least ``overlap``, and no better detection has found the object. Where that object is difficult, the
    detection doesn't count. Precision is that of any higher recall if that is more.

    Raises:
        ValueError: another number of pictures with detections than with objects.
    """
    if len(detections) != len(objects):
        raise ValueError(f"detections are of {len(detections)} pictures and objects of {len(objects)}")
    scores, right = [], []
    asked = 0
    for detected, actual in zip(detections, objects, strict=True):
        predicted, wanted = detected.labels == label, actual.labels == label
        boxes = actual.boxes[wanted]
        easy = torch.ones(len(boxes), dtype=torch.bool)
        if actual.difficult is not None:
            easy = ~actual.difficult[wanted]
        asked += int(easy.sum())
        assert detected.scores is not None
        order = detected.scores[predicted].sort(descending=True, stable=True).indices
        shares = box_iou(detected.boxes[predicted][order], boxes)
        taken = torch.zeros(len(boxes), dtype=torch.bool)
        for score, share in zip(detected.scores[predicted][order].tolist(), shares, strict=True):
            best = int(share.argmax()) if len(boxes) else -1
            if best < 0 or share[best] < overlap:
                hit = False
            elif not easy[best]:
                continue
            else:
                hit = not bool(taken[best])
                taken[best] = True
            scores.append(score)
            right.append(hit)
    if asked == 0:
        return float("nan")
    order = torch.tensor(scores).sort(descending=True, stable=True).indices
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    recall = torch.cat([hits.new_zeros(1), hits / asked])
    highest = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return float((recall.diff() * highest).sum())
