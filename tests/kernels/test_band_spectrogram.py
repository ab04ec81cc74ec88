"""The launcher of spectrograms in bands against float64 truth."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference
from cmx_fast.ops import band_reach
from cmx_fast.ops.band_spectrogram import LOGARITHM_CODES

pytest.importorskip("triton")
from cmx_fast.kernels.band_spectrogram import band_spectrogram_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.mark.parametrize("logarithm", LOGARITHM_CODES)
@pytest.mark.parametrize(
    ("samples", "length", "n_fft", "hop", "count", "ends", "preemphasis", "remove_mean"),
    [
        (900, 128, 128, 31, 20, "reflected", 0.0, False),
        (900, 100, 128, 31, 20, "reflected", 0.0, False),
        (777, 60, 128, 30, 41, "zeros", 0.97, False),
        (500, 64, 64, 19, 33, "cut", 0.0, True),
        (64, 64, 64, 19, 1, "cut", 0.9, True),
    ],
)
def test_levels(device, samples, length, n_fft, hop, count, ends, preemphasis, remove_mean, logarithm):
    # Rows between those that are given are NaN: nothing may be read beyond a wave's ends.
    memory = torch.full((3, samples), float("nan"))
    memory[1] = torch.randn(samples)
    wave, window = memory[1:2], torch.rand(length) + 0.1
    bands = torch.rand(count, n_fft // 2 + 1) * (torch.rand(count, n_fft // 2 + 1) < 0.2)
    mean, std = torch.randn(count), torch.rand(count) + 0.5
    options = {
        "n_fft": n_fft, "hop": hop, "ends": ends, "preemphasis": preemphasis, "remove_mean": remove_mean,
        "logarithm": logarithm, "floor": 1e-10, "mean": mean, "std": std,
    }  # fmt: skip
    truth = reference.band_spectrogram(wave.double(), window.double(), bands.double(), **options)
    given = memory.to(device)[1:2]
    actual = band_spectrogram_fwd(
        given, *(t.to(device) for t in (window, bands, band_reach(bands), mean, std)), truth.shape[2], n_fft,
        hop, ends == "reflected", preemphasis, remove_mean, LOGARITHM_CODES[logarithm], 1e-10,
    ).cpu()  # fmt: skip
    assert actual.shape == truth.shape
    # Bands that take nothing have the floor's level, exactly.
    assert (actual.double() - truth).abs().max() <= 2e-5 * truth.abs().max()
