"""Average precision on detections whose order and overlaps are known."""

from __future__ import annotations

import math

import pytest
import torch

from cmx_fast.evaluate.detection import Boxes, average_precision

SQUARE, FAR = [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 7.0, 7.0]


def found(*rows):
    """Detections (box, label, score)."""
    return Boxes(
        torch.tensor([box for box, _, _ in rows]).view(-1, 4),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        torch.tensor([score for _, _, score in rows]),
    )


def there(*rows):
    """Objects (box, label, difficult)."""
    return Boxes(
        torch.tensor([box for box, _, _ in rows]).view(-1, 4),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        None,
        torch.tensor([difficult for _, _, difficult in rows], dtype=torch.bool),
    )


def test_all_found_is_one_and_nothing_found_is_zero():
    objects = [there((SQUARE, 1, False)), there((FAR, 1, False))]
    assert average_precision([found((SQUARE, 1, 0.3)), found((FAR, 1, 0.9))], objects, 1) == 1
    assert average_precision([found(), found()], objects, 1) == 0
    assert average_precision([found((SQUARE, 2, 0.3)), found()], objects, 1) == 0
    assert math.isnan(average_precision([found((SQUARE, 2, 0.3)), found()], objects, 2))


def test_the_order_of_scores_counts_over_all_pictures():
    """Right, wrong, right of three objects: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
    objects = [there((SQUARE, 1, False), (FAR, 1, False)), there((SQUARE, 1, False))]
    detections = [found((SQUARE, 1, 0.9), (FAR, 1, 0.2)), found((FAR, 1, 0.5))]
    assert average_precision(detections, objects, 1) == pytest.approx(1 / 3 + 2 / 3 / 3)


def test_an_object_is_found_once():
    detections = [found((SQUARE, 1, 0.9), ([0.0, 0.0, 2.0, 2.1], 1, 0.8), (FAR, 1, 0.7))]
    objects = [there((SQUARE, 1, False), (FAR, 1, False))]
    assert average_precision(detections, objects, 1) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_difficult_objects_are_neither_asked_for_nor_wrong():
    objects = [there((SQUARE, 1, False), (FAR, 1, True))]
    assert average_precision([found((FAR, 1, 0.9), (SQUARE, 1, 0.5))], objects, 1) == 1


def test_overlap_decides():
    detections, objects = [found(([0.0, 0.0, 2.0, 3.0], 1, 0.9))], [there((SQUARE, 1, False))]
    assert average_precision(detections, objects, 1) == 1
    assert average_precision(detections, objects, 1, overlap=0.7) == 0
    with pytest.raises(ValueError, match="detections are of 1 pictures and objects of 2"):
        average_precision(detections, objects * 2, 1)
