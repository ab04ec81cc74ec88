"""The power spectral density over time with SciPy's values, the audio encoder's input in Sound2Scene."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmx_fast.ops import band_reach, band_spectrogram

LOG_FLOOR = 1e-7  # [R] all silence below it looks alike, so loudness matters


class PowerSpectrogram(nn.Module):
    """One-sided power spectral density of overlapping frames, in units squared per hertz.

    Input (B, samples), float32 or float64; output (B, 1 + nperseg // 2, frames) in the same dtype with frames =
    1 + (samples - nperseg) // (nperseg - noverlap). Equals ``scipy.signal.spectrogram(wave, sample_rate,
    nperseg=nperseg, noverlap=noverlap)[2]``: periodic Tukey window of shape 0.25, the mean of every frame removed
    before the window, no padding, density scaling. float32 at least, also under autocast; no gradient.

    Sound2Scene's code gives 16 kHz, 512 and 353: 10 s are (B, 257, 1004), where the paper writes 1004 x 257. Cost: one
    real FFT of ``nperseg`` per frame; memory: the output and a few megabytes.

    Raises:
        ValueError: an overlap that does not leave a step, or a wave of another shape or dtype, or shorter than a frame.
    """

    window: Tensor
    bands: Tensor
    reach: Tensor

    def __init__(self, sample_rate: float = 16000, nperseg: int = 512, noverlap: int = 353) -> None:
        super().__init__()
        if nperseg < 2 or not 0 <= noverlap < nperseg:
            raise ValueError(
                f"noverlap must be in [0, nperseg = {nperseg}) and nperseg at least 2, got {noverlap}"
            )
        if sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive, got {sample_rate}")
        self.nperseg, self.step = nperseg, nperseg - noverlap
        window = tukey(nperseg)
        scale = torch.full((nperseg // 2 + 1,), 2.0, dtype=torch.float64) / (
            sample_rate * window.square().sum()
        )
        # Every frequency but zero, and of an even length the highest, stands for its negative too.
        scale[0] /= 2
        if nperseg % 2 == 0:
            scale[-1] /= 2
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bands", scale.diag(), persistent=False)
        self.register_buffer("reach", band_reach(self.bands), persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        if wave.dim() != 2 or not wave.is_floating_point() or wave.shape[1] < self.nperseg:
            raise ValueError(
                f"wave must be float (B, samples) with at least {self.nperseg} samples, got {wave.dtype} of shape "
                f"{tuple(wave.shape)}; pad or repeat shorter ones"
            )
        return band_spectrogram(
            wave,
            self.window,
            self.bands,
            reach=self.reach,
            n_fft=self.nperseg,
            hop=self.step,
            remove_mean=True,
        )


def tukey(length: int, share: float = 0.25) -> Tensor:
    """Periodic Tukey window, float64: a cosine rises over half of ``share`` of it, and falls over the other half."""
    place = torch.arange(length, dtype=torch.float64)
    width = share * length / 2
    # The periodic window of n is the symmetric one of n + 1 without its last sample.
    rising = 0.5 * (1 + torch.cos(math.pi * (place / width - 1)))
    falling = 0.5 * (1 + torch.cos(math.pi * ((place - length) / width + 1)))
    flat = torch.ones_like(place)
    return torch.where(place < width, rising, torch.where(place <= length - width, flat, falling))


def standardised_log(power: Tensor) -> Tensor:
    """Standardise log(power + 1e-7) of each clip (B, F, T): less its mean, over its deviation + 1e-9 (the code's)."""
    level = torch.log(power + LOG_FLOOR)
    # In float64: for silence the mean's own rounding would be divided by 1e-9.
    mean = level.mean((1, 2), keepdim=True, dtype=torch.float64)
    deviation = (level - mean).square().mean((1, 2), keepdim=True).sqrt()
    return ((level - mean) / (deviation + 1e-9)).to(power.dtype)


def lasting(wave: Tensor, seconds: float = 10.0, sample_rate: int = 16000) -> Tensor:
    """Make waves (..., samples) last so many seconds: repeated as needed, cut, clipped to [-1, 1] (the code's).

    Raises:
        ValueError: no samples.
    """
    wanted, length = round(seconds * sample_rate), wave.shape[-1]
    if length == 0:
        raise ValueError("wave has no samples")
    repeats = [1] * (wave.dim() - 1) + [math.ceil(wanted / length)]
    return wave.repeat(repeats)[..., :wanted].clamp(-1, 1)
