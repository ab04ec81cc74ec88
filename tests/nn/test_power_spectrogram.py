"""The spectrogram against scipy.signal.spectrogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("scipy.signal")

from scipy import signal

from cmx_fast.nn import PowerSpectrogram
from cmx_fast.nn.power_spectrogram import lasting, standardised_log, tukey


def scipys(wave, sample_rate, nperseg, noverlap):
    return np.stack(
        [signal.spectrogram(row, sample_rate, nperseg=nperseg, noverlap=noverlap)[2] for row in wave.numpy()]
    )


@pytest.mark.parametrize("length", [2, 7, 64, 512, 513])
def test_window_is_scipys(length):
    expected = signal.get_window(("tukey", 0.25), length)
    np.testing.assert_allclose(tukey(length).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("samples", "sample_rate", "nperseg", "noverlap"),
    [
        (160000, 16000, 512, 353),
        (5000, 16000, 512, 274),
        (1001, 8000, 101, 7),
        (512, 16000, 512, 0),
        (700, 1, 2, 1),
    ],
)
def test_power_is_scipys(samples, sample_rate, nperseg, noverlap):
    wave = 0.3 * torch.randn(2, samples).double() + 0.5
    expected = scipys(wave, sample_rate, nperseg, noverlap)
    layer = PowerSpectrogram(sample_rate, nperseg, noverlap)
    spectrogram = layer(wave)
    assert spectrogram.shape == expected.shape
    np.testing.assert_allclose(spectrogram.numpy(), expected, rtol=1e-9, atol=1e-9 * expected.max() * 1e-6)
    single = layer(wave.float())
    assert single.dtype == torch.float32
    assert np.abs(single.numpy() - expected).max() <= 1e-5 * expected.max()
    assert np.linalg.norm(single.numpy() - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_tone_has_its_power_where_it_belongs():
    time = torch.arange(160000) / 16000
    power = PowerSpectrogram()(torch.sin(2 * torch.pi * 1000 * time)[None])
    assert power.shape == (1, 257, 1004)
    assert (power.argmax(1) == 32).all()  # 1000 Hz of 31.25 Hz a bin
    assert (power.sum(1) * 31.25).mean().item() == pytest.approx(0.5, rel=0.05)  # the mean square of a sine


def test_loudness_shows_against_the_floor_only():
    wave = 0.02 * torch.randn(1, 160000)
    levels = [standardised_log(PowerSpectrogram()(gain * wave)) for gain in (1.0, 1.0, 10.0, 100.0)]
    assert levels[0].equal(levels[1])
    quiet, loud = ((levels[i] - levels[i + 1]).abs().mean().item() for i in (1, 2))
    assert quiet > 3 * loud
    assert levels[0].mean().abs() < 1e-5 and levels[0].std().item() == pytest.approx(1, rel=1e-3)


def test_silence_is_finite():
    assert standardised_log(PowerSpectrogram()(torch.zeros(2, 4000))).abs().max() < 1e-3


def test_lasting_of_any_wave():
    short = torch.linspace(-2, 2, 3200)
    filled = lasting(short)
    assert filled.shape == (160000,) and filled.abs().max() == 1
    assert filled[:3200].equal(short.clamp(-1, 1)) and filled[3200:6400].equal(filled[:3200])
    assert lasting(torch.ones(2, 500000)).shape == (2, 160000)
    with pytest.raises(ValueError, match="no samples"):
        lasting(torch.zeros(0))


def test_autocast_changes_nothing():
    wave = torch.randn(1, 2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PowerSpectrogram()(wave).equal(PowerSpectrogram()(wave))
    assert PowerSpectrogram()(wave.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerSpectrogram(noverlap=512), r"noverlap must be in \[0, nperseg = 512\)"),
        (lambda: PowerSpectrogram(sample_rate=0), "sample_rate must be positive"),
        (lambda: PowerSpectrogram()(torch.zeros(2, 511)), "at least 512 samples"),
        (lambda: PowerSpectrogram()(torch.zeros(2, 900).int()), "wave must be float"),
        (lambda: PowerSpectrogram()(torch.zeros(900)), "wave must be float"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
