"""Linear classification of frozen features."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the evaluate extra")
from cmx_fast.evaluate import linear
from cmx_fast.evaluate.linear import accuracy, classify


@pytest.mark.parametrize("classes", [2, 4])
def test_separable_classes_are_told_apart_whatever_the_scale(classes):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 10, generator=generator)
    labels = torch.arange(classes).repeat(12)

    def draw():
        return 1000 + 1e-2 * (centres[labels] + 0.05 * torch.randn(len(labels), 10, generator=generator))

    assert accuracy(draw(), labels, draw(), labels) == 1.0


def test_many_rows_are_classified_by_gradient_descent(monkeypatch):
    monkeypatch.setattr(linear, "MOST_ROWS", 500)
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(7, 10, generator=generator), torch.tensor([0, 2, 5, 6]).repeat(150)

    def draw():
        return 1000 + 1e-2 * (centres[labels] + 0.5 * torch.randn(len(labels), 10, generator=generator))

    train, test = draw(), draw()
    values = classify(train, labels, test)
    assert values.shape == (600, 7) and values[:, [1, 3, 4]].isinf().all()
    assert values.equal(linear.descend(train, labels, test))  # the same twice
    right = float((values.argmax(1) == labels).double().mean())
    monkeypatch.setattr(linear, "MOST_ROWS", 1000)
    assert right > accuracy(train, labels, test, labels) - 0.02


def test_classes_that_training_lacks_are_never_answered():
    train, labels = torch.randn(12, 3), torch.tensor([0, 3, 5] * 4)
    values = classify(train, labels, torch.randn(7, 3))
    assert values.shape == (7, 6) and values[:, [1, 2, 4]].isinf().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="has 1 class; a classifier needs two"):
        classify(torch.randn(4, 3), torch.zeros(4).long(), torch.randn(2, 3))
