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


def test_rows_of_a_group_choose_no_penalty_for_each_other():
    """Rows of a group are alike but for a hair: told from one another by memory, any penalty seems good enough."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.35 * torch.randn(4, 60, generator=generator)

    def draw(groups):
        labels = torch.arange(4).repeat(groups)
        rows = centres[labels] + torch.randn(len(labels), 60, generator=generator)
        group = torch.arange(len(labels)).repeat_interleave(4)
        return rows[group] + 1e-3 * torch.randn(len(group), 60, generator=generator), labels[group], group

    (rows, labels, group), (test, test_labels, _) = draw(15), draw(100)
    grouped, single = (
        float(
            (classify(rows, labels, test, groups=of, machine="ridge").argmax(1) == test_labels)
            .double()
            .mean()
        )
        for of in (group, None)
    )
    assert grouped > single + 0.03


def test_least_squares_tell_separable_classes_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    rows = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=generator)
    assert (classify(rows, labels, rows, machine="ridge").argmax(1) == labels).all()


def test_features_that_are_nearly_alike_are_fitted_without_a_warning(recwarn):
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(9000, 2, generator=generator), torch.arange(3).repeat(3000)
    alike = rows.repeat(1, 200) + 1e-5 * torch.randn(9000, 400, generator=generator)
    classify(alike, labels, alike, machine="ridge")
    assert not [warning for warning in recwarn if "ill-conditioned" in str(warning.message).lower()]


def test_refuses():
    with pytest.raises(ValueError, match="has 1 class; a classifier needs two"):
        classify(torch.randn(4, 3), torch.zeros(4).long(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="machine must be svm or ridge; got 'tree'"):
        classify(torch.randn(4, 3), torch.arange(4), torch.randn(2, 3), machine="tree")
