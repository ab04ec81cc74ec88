from __future__ import annotations

import numpy as np
import pytest
import torch

from cmx_fast.evaluate.localisation import (
    answers,
    best_threshold,
    consensus,
    consensus_iou,
    enlarge,
    larger_half,
    success,
)


def box(*corners):
    return torch.tensor([corners], dtype=torch.float32)


def test_the_union_of_one_persons_boxes():
    truth = consensus(torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 1.2]]), side=8)
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    expected[2:8, 2:6] = 1
    assert truth.equal(expected)


def test_a_pixel_counts_whole_where_two_of_three_people_agree():
    boxes = torch.tensor([[0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.25, 0, 1, 1]])
    assert consensus(boxes, agreeing=2, side=4)[0].tolist() == [0.5, 1, 1, 0.5]


def reference_iou(region, truth):
    """Senocak et al.'s measure, as the public evaluations write it."""
    region, truth = region.numpy().astype(float), truth.numpy()
    return np.sum(region * truth) / (np.sum(truth) + np.sum(region * (truth == 0)))


def test_consensus_iou_is_the_public_codes():
    generator = torch.Generator().manual_seed(0)
    truths = torch.stack([consensus(torch.rand(3, 2, generator=generator).repeat(1, 2) * 0.5
                                    + torch.tensor([0, 0, 0.4, 0.3]), 2, 32) for _ in range(5)])  # fmt: skip
    regions = torch.rand(5, 32, 32, generator=generator) > 0.6
    values = consensus_iou(regions, truths)
    for value, region, truth in zip(values, regions, truths):
        assert value.item() == pytest.approx(reference_iou(region, truth), rel=1e-5)
    assert consensus_iou(regions[:1], torch.zeros(1, 32, 32)).item() == 0


def test_the_larger_half_is_above_the_median():
    maps = torch.rand(3, 10, 12)
    assert larger_half(maps).flatten(1).sum(1).tolist() == [59, 59, 59]
    assert larger_half(torch.ones(1, 4, 4)).sum() == 0


def test_success_over_thresholds():
    figures = success(torch.tensor([1.0, 0.5, 0.49, 0.0]))
    assert figures["cIoU"] == 0.5
    shares = [np.mean(np.array([1.0, 0.5, 0.49, 0.0]) >= 0.05 * i - 1e-9) for i in range(21)]
    assert figures["AUC"] == pytest.approx(np.trapezoid(shares, dx=0.05))
    assert success(torch.ones(3)) == {"cIoU": 1.0, "AUC": pytest.approx(1)}


def peaked(place, height=1.0, size=14):
    """A map that is high at one corner's quarter, and 0 elsewhere."""
    maps = torch.zeros(size, size)
    half = size // 2
    rows, columns = place
    maps[rows * half : (rows + 1) * half, columns * half : (columns + 1) * half] = height
    return maps


PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)] * 3
OWN = torch.stack([peaked(place, 0.6 + 0.03 * i) for i, place in enumerate(PLACES)])
TRUTH = [
    consensus(box(0.5 * column, 0.5 * row, 0.5 * column + 0.5, 0.5 * row + 0.5)) for row, column in PLACES
]


def test_a_listening_map_is_silent_without_its_sound():
    threshold = best_threshold(OWN, TRUTH)
    assert 0 < threshold <= 0.61
    figures = answers(OWN, TRUTH, {"silence": 0.1 * OWN}, threshold)
    assert figures == {
        "hits": 1.0,
        "silence false positives": 0.0,
        "silence area": 0.0,
        "silence F1": 1.0,
        "silence below own": 1.0,
    }


def test_a_map_that_always_points_at_the_object_is_seen_to():
    figures = answers(OWN, TRUTH, {"silence": OWN, "noise": OWN}, best_threshold(OWN, TRUTH))
    assert figures["hits"] == 1
    for kind in ("silence", "noise"):
        assert figures[f"{kind} false positives"] == 1
        assert figures[f"{kind} F1"] == pytest.approx(2 / 3)
        assert figures[f"{kind} below own"] == 0.5
        assert 0.2 < figures[f"{kind} area"] < 0.3


def test_wrong_places_and_missing_regions_are_errors():
    own = OWN.clone()
    own[0] = own[3]  # points elsewhere
    own[1] = 0.0  # points nowhere
    figures = answers(own, TRUTH, {"silence": torch.zeros_like(own)}, 0.5)
    assert figures["hits"] == pytest.approx(10 / 12)
    assert figures["silence F1"] == pytest.approx(20 / 22)


def test_of_equal_thresholds_the_highest_is_chosen():
    maps = torch.stack([peaked((0, 0)), peaked((0, 0))])
    truth = [consensus(box(0, 0, 0.5, 0.5))] * 2
    threshold = best_threshold(maps, truth)
    assert (consensus_iou(enlarge(maps) >= threshold, torch.stack(truth)) >= 0.5).all()
    higher = threshold + 1 / 60
    assert higher > 1 or not (consensus_iou(enlarge(maps) >= higher, torch.stack(truth)) >= 0.5).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: consensus(torch.zeros(4)), r"boxes must have shape \(n, 4\), got \(4,\)"),
        (lambda: consensus(torch.zeros(1, 4), 0), "agreeing must be at least 1, got 0"),
        (lambda: best_threshold(OWN, TRUTH[:2]), "equally many and not none; got 12 and 2"),
        (lambda: best_threshold(OWN[:0], []), "equally many and not none; got 0 and 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
