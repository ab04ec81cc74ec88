from __future__ import annotations

import pytest
import torch

from cmx_fast.evaluate.segmentation import NO_COLOUR, agreement, colour, confusion, match, palette, scores


def test_confusion_counts_pixels_with_a_label():
    labels = torch.tensor([[0, 1, 1], [2, 2, 0]])
    masks = torch.tensor([[0, 1, 0], [1, -1, 0]])
    assert confusion(labels, masks, 4, 2).tolist() == [[2, 0], [1, 1], [0, 1], [0, 0]]


def test_confusion_refuses():
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2\) and masks \(2, 3\)"):
        confusion(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), 2, 2)
    with pytest.raises(ValueError, match="masks must be below 3; found 0 to 3"):
        confusion(torch.zeros(4, dtype=torch.int64), torch.arange(4), 2, 3)


def test_agreement_of_predicted_and_true_classes():
    predicted, true = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    measured = agreement(confusion(predicted, true, 3, 3))
    assert measured.accuracy == pytest.approx(0.6)
    torch.testing.assert_close(measured.iou, torch.tensor([1 / 3, 1 / 2, torch.nan]).double(), equal_nan=True)
    torch.testing.assert_close(
        measured.recall, torch.tensor([1 / 2, 2 / 3, torch.nan]).double(), equal_nan=True
    )


def test_match_is_one_to_one_for_the_whole_split():
    assert match(torch.tensor([[50, 12], [40, 0]])).tolist() == [1, 0]  # 12 + 40 agree, rather than 50
    assert match(torch.tensor([[1, 2, 9], [8, 1, 7]])).tolist() == [2, 0]
    assert match(torch.tensor([[5, 0], [0, 1], [9, 9], [0, 3]])).tolist() == [0, -1, 1, -1]


def test_scores_of_a_table_made_by_hand():
    found = scores(torch.tensor([[60, 10], [0, 20], [10, 0]]))
    assert found["accuracy"] == pytest.approx(0.8)
    iou = [60 / (70 + 70 - 60), 20 / (20 + 30 - 20)]
    assert found["miou_matched"] == pytest.approx(sum(iou) / 2)
    assert found["miou_clusters"] == pytest.approx(sum(iou) / 3)
    assert found["miou_majority"] == pytest.approx((70 / 80 + 20 / 30) / 2)


def test_scores_of_a_perfect_and_of_a_collapsed_segmentation():
    assert set(scores(torch.diag(torch.tensor([5, 2, 3]))[[2, 0, 1]]).values()) == {1.0}
    collapsed = scores(torch.tensor([[80, 10, 10], [0, 0, 0], [0, 0, 0]]))
    assert collapsed["accuracy"] == pytest.approx(0.8)
    assert collapsed["miou_matched"] == pytest.approx(0.8 / 3)


def test_fewer_clusters_than_classes_and_a_class_without_pixels():
    found = scores(torch.tensor([[6, 0, 0], [1, 3, 0]]))
    assert found["miou_matched"] == pytest.approx((6 / 7 + 3 / 4) / 2)
    assert found["miou_clusters"] == pytest.approx((6 / 7 + 3 / 4) / 3)


def test_mean_over_clusters_bounds_the_papers_figures():
    """The sum of the IoUs is at least the accuracy, so the paper's 69.3 % and 12.33 % need six slots or more."""
    for seed in range(20):
        counts = torch.randint(1000, (6, 3), generator=torch.Generator().manual_seed(seed))
        found = scores(counts)
        assert 6 * found["miou_clusters"] >= found["accuracy"]


def test_colours():
    assert len(set(palette(18))) == 18
    picture = colour(torch.tensor([[0, 1], [2, -1]]), 3)
    assert picture.dtype == torch.uint8
    assert picture.tolist() == [[list(c) for c in palette(3)[:2]], [list(palette(3)[2]), list(NO_COLOUR)]]
