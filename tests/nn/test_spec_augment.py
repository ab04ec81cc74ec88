from __future__ import annotations

import pytest
import torch

from cmx_fast.nn import SpecAugment
from cmx_fast.nn.spec_augment import warped
from cmx_fast.ops import warp_and_mask

SPECTROGRAM = (400, 20, 30)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_are_stripes_of_every_width_anywhere():
    hidden = SpecAugment(1, 3, 1, 6, warp=0)(torch.ones(SPECTROGRAM), draw(0)) == 0
    bands, frames = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, bands[:, :, None] | frames[:, None])
    for stripe, widest in ((bands, 3), (frames, 6)):
        assert set(stripe.sum(1).tolist()) == set(range(widest + 1))
        assert (stripe[:, 1:] & ~stripe[:, :-1]).sum(1).max() == 1  # at most one stripe begins inside
        assert stripe.any(0).all()


def test_several_masks():
    hidden = SpecAugment(freq_masks=0, time_masks=2, time_width=3, warp=0)(torch.ones(SPECTROGRAM)) == 0
    assert hidden.all(1).sum(1).max() == 6
    assert not hidden.all(2).any()


def test_time_is_warped_between_fixed_ends():
    ramp = torch.arange(30.0).expand(200, 4, 30)
    warped = SpecAugment(0, 0, 0, 0, warp=5)(ramp, draw(1))
    torch.testing.assert_close(warped[:, :, 0], ramp[:, :, 0])
    torch.testing.assert_close(warped[:, :, -1], ramp[:, :, -1])
    assert (warped.diff(dim=2) > -1e-4).all()
    moved = (warped - ramp).abs().amax((1, 2))
    assert 4 < moved.max() <= 5
    assert moved.min() < 1
    slopes = warped[0, 0].diff()
    assert (
        len(torch.unique((slopes * 1e3).round())) <= 3
    )  # one slope before the moved frame, one behind, one across


def test_the_moved_frame_arrives_where_it_was_sent():
    peak = torch.zeros(1, 1, 21)
    peak[0, 0, 10] = 1
    position = warped(
        torch.arange(21.0), torch.tensor([0.5]), torch.tensor([0.7]), 5
    )  # from 10 to 10 + (2 * 0.7 - 1) * 5 = 12
    shown = torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 21, dtype=torch.bool)
    moved = warp_and_mask(peak, position, *shown)
    assert moved.argmax() == 12
    torch.testing.assert_close(moved[0, 0, 12], torch.tensor(1.0))


def test_generator_decides():
    spectrogram, augment = torch.randn(8, 20, 30), SpecAugment()
    first = augment(spectrogram, draw(3))
    assert torch.equal(first, augment(spectrogram, draw(3)))
    assert not torch.equal(first, augment(spectrogram, draw(4)))
    assert not torch.equal(
        augment(spectrogram[:1].expand(8, -1, -1), draw(3)).std(0).max(), torch.tensor(0.0)
    )


def test_nothing_happens_in_evaluation():
    spectrogram = torch.randn(2, 20, 30)
    assert SpecAugment().eval()(spectrogram) is spectrogram


def test_refuses():
    with pytest.raises(ValueError, match="time_width must not be negative"):
        SpecAugment(time_width=-1)
    with pytest.raises(ValueError, match="spectrogram must be float"):
        SpecAugment()(torch.ones(20, 30))
    with pytest.raises(ValueError, match="5 frames"):
        SpecAugment()(torch.ones(1, 20, 5))
