from __future__ import annotations

import numpy as np
import pytest
import torch

from cmx_fast.nn import LogFilterbank


def original(samples: np.ndarray, rate: int, **options) -> np.ndarray:
    base = pytest.importorskip("python_speech_features", reason="needs the test extra")
    return base.logfbank(samples, rate, **options).T


def noise(count: int, loudness: float = 8000.0) -> np.ndarray:
    """16-bit coloured noise that fades in, with a gap of digital silence."""
    samples = np.random.default_rng(0).normal(size=count) * np.linspace(0, loudness, count)
    samples = np.convolve(samples, [0.5, 0.3, 0.2], "same").round()
    samples[count // 3 : count // 2] = 0
    return samples.astype(np.int16)


def ours(samples: np.ndarray, *arguments, **options) -> np.ndarray:
    wave = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    return LogFilterbank(*arguments, **options)(wave)[0].numpy()


def test_shape_of_one_second():
    assert LogFilterbank()(torch.randn(2, 24000)).shape == (2, 257, 99)
    assert LogFilterbank()(torch.randn(2, 48000)).shape == (2, 257, 199)


@pytest.mark.parametrize("samples", [24000, 24001, 5003, 480, 481, 300])
def test_equals_python_speech_features(samples):
    wave = noise(samples)
    expected = original(wave, 24000, winlen=0.02, winstep=0.01, nfft=1024, preemph=0.97, nfilt=257)
    got = ours(wave)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert (got == np.float32(np.log(np.finfo(float).eps))).sum() == (expected < -36).sum() > 0


def test_equals_it_at_other_settings():
    wave = noise(16000)
    expected = original(wave, 16000, winlen=0.025, winstep=0.0125, nfft=512, preemph=0.9, nfilt=40)
    np.testing.assert_allclose(ours(wave, 16000, 0.025, 0.0125, 512, 0.9, 40), expected, atol=2e-4)


def test_full_precision_under_autocast():
    wave = torch.randn(1, 5000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = LogFilterbank()(wave)
    torch.testing.assert_close(got, LogFilterbank()(wave))


def test_refuses():
    with pytest.raises(ValueError, match="wave must be float"):
        LogFilterbank()(torch.ones(8000))
    with pytest.raises(ValueError, match="wave must be float"):
        LogFilterbank()(torch.ones(1, 8000, dtype=torch.int16))
    with pytest.raises(ValueError, match="nfft must hold the window's 480 samples"):
        LogFilterbank(nfft=256)
    with pytest.raises(ValueError, match="filters must be at least 1"):
        LogFilterbank(filters=0)
