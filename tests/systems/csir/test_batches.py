from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from cmx_fast.systems.csir.batches import (
    check_shares,
    class_balanced,
    random_crop,
    random_zoom,
    share,
    training_batches,
)
from cmx_fast.systems.csir.recipe import CSIRRecipe


def test_batches_are_balanced_and_use_every_row():
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 3 + [3] * 2)
    batches = list(islice(class_balanced(labels, 8, 4, seed=0), 40))
    for rows in batches:
        assert sorted(Counter(labels[rows].tolist()).values()) in ([4, 4], [8])
    rows = Counter(row for batch in batches for row in batch)
    per_class = Counter(labels[row].item() for row in rows.elements())
    assert set(per_class.values()) == {80}
    assert len(rows) == len(labels)
    of_class_0 = [rows[row] for row in range(30)]
    assert max(of_class_0) - min(of_class_0) <= 1  # a deck is dealt to its end before it is shuffled


def test_the_stream_depends_on_the_seed_alone():
    labels = torch.arange(20) % 5
    stream = list(islice(class_balanced(labels, 8, 4, seed=3), 30))
    assert list(islice(class_balanced(labels, 8, 4, seed=3), 20, 30)) == stream[20:]
    assert list(islice(class_balanced(labels, 8, 4, seed=4), 30)) != stream


class RowNumbers:
    """Data whose batches are the rows that were asked for."""

    space, paired = torch.arange(60) % 6, 60

    def load(self, rows, modalities):
        return ({"rows": row} for row in rows)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_batch_by_whole_classes(world):
    recipe = CSIRRecipe.preset("demo", samples_per_class=4)
    own = share(24, 4, world)
    assert own == 24 // world
    parts = [
        next(training_batches(RowNumbers(), recipe, own, ("logmel",), 5, rank=rank, world=world)(3))["rows"]
        for rank in range(world)
    ]
    (together,) = islice(class_balanced(RowNumbers.space, 24, 4, 5), 3, 4)
    assert [row for part in parts for row in part] == together
    for part in parts:
        assert all(count % 4 == 0 for count in Counter(RowNumbers.space[part].tolist()).values())


def test_a_batch_too_small_for_the_processes_is_refused():
    recipe = CSIRRecipe.preset("demo", samples_per_class=4, speech_batch=16)
    check_shares(recipe, 4)
    with pytest.raises(
        ValueError, match="speech_batch = 16 leaves 5 processes fewer than one class of 4 samples"
    ):
        check_shares(recipe, 5)


def test_random_crop_takes_consecutive_frames_and_one_gain_each():
    logmel = torch.arange(50.0).expand(64, 2, 50)
    crops = random_crop(logmel, 10, gain_db=3.0)
    assert crops.shape == (64, 2, 10)
    torch.testing.assert_close(crops.diff(dim=2), torch.ones(64, 2, 9))
    start = crops[:, 0, 0]
    assert start.min() >= -3
    assert start.max() <= 40 + 3
    assert start.std() > 5
    torch.testing.assert_close(random_crop(logmel, 50, gain_db=0.0), logmel)


def test_random_zoom_keeps_the_picture_within_its_window():
    image = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    assert random_zoom(image, 0.0) is image
    zoomed = random_zoom(image, 0.2)
    assert zoomed.shape == image.shape
    slope = zoomed[:, 0, 16].diff(dim=1).mean(1) * 31
    assert (slope < 0).float().mean() == pytest.approx(0.5, abs=0.25)  # mirrored
    assert slope.abs().min() > 0.75
    assert slope.abs().max() <= 1.05
