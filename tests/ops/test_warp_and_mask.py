"""Frames moved in time and parts hidden: against interpolation by hand, laws, odd sizes, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmx_fast import ops
from cmx_fast.ops import warp_and_mask

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def truth_of(x, position, hidden_bands, hidden_frames):
    places = np.arange(x.shape[2])
    rows = [
        [np.interp(p, places, band) for band in sample]
        for sample, p in zip(x.double().numpy(), position.numpy())
    ]
    actual = torch.from_numpy(np.array(rows)).reshape(x.shape)
    actual[hidden_bands] = 0
    return actual.masked_fill(hidden_frames[:, None], 0)


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "f", "t"), [(1, 1, 1), (3, 257, 99), (2, 5, 2), (4, 3, 301)])
def test_is_interpolation(b, f, t, dtype, impl):
    x = torch.randn(b, f, t).to(dtype)
    # Also before the first frame and behind the last, and exactly on frames.
    position = torch.rand(b, t, dtype=torch.float64) * (t + 3) - 2
    position[:, ::3] = position[:, ::3].round()
    hidden = torch.rand(b, f) < 0.3, torch.rand(b, t) < 0.3
    actual = warp_and_mask(x, position, *hidden, impl=impl)
    # float32 positions are some frames' 1e-7 away.
    expected = truth_of(x, position, *hidden)
    assert actual.dtype == dtype
    far = 3 * EPSILON[dtype] + (3e-5 if dtype != torch.float64 else 0)
    torch.testing.assert_close(actual.double(), expected, rtol=far, atol=far)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_nothing_changes(dtype):
    x = torch.randn(2, 7, 30).to(dtype)
    shown = torch.zeros(2, 7, dtype=torch.bool), torch.zeros(2, 30, dtype=torch.bool)
    assert warp_and_mask(x, torch.arange(30.0).expand(2, -1), *shown).equal(x)


def test_what_is_hidden_or_not_asked_for_does_not_show():
    x = torch.full((2, 6, 9), float("nan"))
    x[:, 1:3, 3:6] = 1.0
    bands, frames = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 9, dtype=torch.bool)
    bands[:, 1:3] = False
    frames[:, 7:] = True
    position = torch.full((2, 9), 5.0)  # between 5 and 6, which is NaN, but no part of it
    position[:, 7:] = float("nan")
    for impl in ("cpp", "reference"):
        actual = warp_and_mask(x, position, bands, frames, impl=impl)
        assert actual[:, 1:3, :7].eq(1).all() and actual.sum() == 2 * 2 * 7


def test_other_layouts_gradients_and_no_samples():
    x, position = torch.randn(3, 8, 5).transpose(1, 2), torch.rand(3, 8) * 7
    hidden = torch.rand(3, 5) < 0.3, torch.rand(3, 8) < 0.3
    expected = warp_and_mask(x.contiguous(), position, *hidden)
    assert warp_and_mask(x, position, *hidden).equal(expected)
    leaf = x.clone().requires_grad_()
    warp_and_mask(leaf, position, *hidden).sum().backward()
    assert leaf.grad[hidden[0]].eq(0).all() and leaf.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="has no gradient"):
        warp_and_mask(leaf, position, *hidden, impl="cpp")
    assert warp_and_mask(x[:0], position[:0], hidden[0][:0], hidden[1][:0]).shape == (0, 5, 8)


GOOD = {
    "x": torch.ones(2, 5, 8),
    "position": torch.ones(2, 8),
    "hidden_bands": torch.zeros(2, 5, dtype=torch.bool),
    "hidden_frames": torch.zeros(2, 8, dtype=torch.bool),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(5, 8)}, ValueError, r"\(B, F, T\)"),
        ({"x": torch.ones(2, 5, 0)}, ValueError, "with frames"),
        ({"position": torch.ones(2, 7)}, ValueError, r"position must have shape \(2, 8\)"),
        ({"hidden_bands": torch.ones(2, 5)}, TypeError, "hidden_bands must be a bool tensor"),
        ({"hidden_frames": None}, TypeError, "hidden_frames must be a bool tensor"),
        ({"hidden_frames": GOOD["hidden_bands"]}, ValueError, r"hidden_frames must have shape \(2, 8\)"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        ops.warp_and_mask(**{**GOOD, **change})


def test_float32_does_not_round_the_last_frame_to_one_behind_it():
    frames = 2**24 + 4
    memory = torch.full((frames + 64,), float("nan"))
    memory[:frames] = torch.arange(frames) % 100
    x, shown = memory[None, None, :frames], torch.zeros(1, frames, dtype=torch.bool)
    actual = warp_and_mask(
        x, torch.full((1, frames), 3e38), torch.zeros(1, 1, dtype=torch.bool), shown, impl="cpp"
    )
    assert (actual == memory[frames - 1]).all()
