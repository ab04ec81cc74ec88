import numpy as np
import pytest
import torch

from cmx_fast.nn.logmel import LogMel


def direct_logmel(wave, rate, n_fft, hop, n_mels):
    """Log-mel from its definition, frame by frame, in float64."""
    padded = np.pad(wave, n_fft // 2, mode="reflect")
    frames = [padded[i : i + n_fft] for i in range(0, len(padded) - n_fft + 1, hop)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    power = np.abs(np.fft.rfft(np.array(frames) * window)) ** 2
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    hertz = np.linspace(0, rate / 2, n_fft // 2 + 1)
    rise = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    return 10 * np.log10(np.maximum(power @ np.maximum(0, np.minimum(rise, fall)), 1e-10)).T


def test_shape_of_the_paper():
    assert LogMel()(torch.randn(2, 132300)).shape == (2, 128, 301)


def test_values_from_the_definition():
    wave = torch.randn(22050) * torch.linspace(0, 1, 22050)
    expected = direct_logmel(wave.double().numpy(), 22050, 2048, 441, 128)
    np.testing.assert_allclose(LogMel()(wave[None])[0].numpy(), expected, atol=2e-2)
    np.testing.assert_allclose(LogMel()(wave).numpy(), expected, atol=2e-2)


def test_silence_is_the_floor():
    assert torch.equal(LogMel()(torch.zeros(1, 8000)), torch.full((1, 128, 19), -100.0))


def test_fit_standardises_each_band():
    batches = [torch.randn(3, 20000) * scale for scale in (0.1, 1.0)]
    layer = LogMel(n_fft=512, n_mels=40)
    raw = torch.cat([layer(batch) for batch in batches])
    assert raw.std() > 5
    assert layer.fit(batches) is layer
    level = torch.cat([layer(batch) for batch in batches])
    torch.testing.assert_close(level.mean(dim=(0, 2)), torch.zeros(40), atol=1e-4, rtol=0)
    torch.testing.assert_close(level.std(dim=(0, 2)), torch.ones(40), atol=1e-2, rtol=0)
    again = LogMel(n_fft=512, n_mels=40)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(batches[0]), layer(batches[0]))


def test_full_precision_under_autocast():
    wave = torch.randn(1, 8000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = LogMel()(wave)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, LogMel()(wave))


def test_refuses():
    with pytest.raises(ValueError, match="wave must be float"):
        LogMel()(torch.ones(1, 1, 8000))
    with pytest.raises(ValueError, match="samples"):
        LogMel()(torch.ones(1, 1000))
    with pytest.raises(ValueError, match="hop must be positive"):
        LogMel(hop=0)
    with pytest.raises(ValueError, match="no frames"):
        LogMel().fit([])
