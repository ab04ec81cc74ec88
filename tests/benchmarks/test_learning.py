"""Attention modules learn what their baselines don't, on the tasks of ``python -m benchmarks.learning``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmx_fast.benchmarks import learning
from cmx_fast.benchmarks.small_parts import small_parts

#: Small pictures, in which a network without attention still does not see most of the markers.
SMALL = {"steps": 100, "size": 16}


@pytest.mark.parametrize("name", ["NonLocal", "ObjectContext", "ContextEncoding"])
def test_a_marker_far_away_tells_the_class(name):
    between, reach = learning.SEGMENTING[name]
    assert learning.segment(between, reach, **SMALL) > 90


def test_without_attention_the_class_is_guessed():
    assert learning.segment(nn.Identity, learning.SIZE, **SMALL) < 65


def test_markers_are_as_far_as_they_say():
    pictures, labels = learning.marked_blobs(20, 4, torch.Generator().manual_seed(0))
    for picture, label_map in zip(pictures, labels, strict=True):
        blob = (label_map > 0).nonzero()
        kind = int(label_map.max()) - 1
        marker = (picture[2 * kind] > 1.4).nonzero()
        gap = (blob[:, None] - marker[None]).abs().amax(2).min() - 1
        assert len(marker) >= 3 and 3 <= gap <= 4


def test_small_parts_are_where_they_say_and_gone_when_smoothed():
    pictures, kinds, middles = small_parts(200, torch.Generator().manual_seed(0))
    score = []
    for picture, (x, y) in zip(pictures[:, 2], (64 * middles).round().long().tolist(), strict=True):
        cut = picture[y - 4 : y + 5, x - 4 : x + 5]
        score.append(cut.diff(dim=1).abs().mean() - cut.diff(dim=0).abs().mean())
    assert ((torch.stack(score) > 0) == (kinds == 1)).float().mean() > 0.9
