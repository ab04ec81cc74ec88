"""Energy of overlapping frames in bands of frequency, and its logarithm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def band_spectrogram(
    wave: Tensor,
    window: Tensor,
    bands: Tensor,
    *,
    n_fft: int,
    hop: int,
    ends: str = "cut",
    preemphasis: float = 0.0,
    remove_mean: bool = False,
    logarithm: str = "none",
    floor: float = 0.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.band_spectrogram`, for any ``n_fft`` and differentiable.

    Memory: all frames, (B, frames, n_fft), and their spectra.
    """
    length = window.shape[0]
    if preemphasis:
        wave = torch.cat([wave[:, :1], wave[:, 1:] - preemphasis * wave[:, :-1]], 1)
    if ends == "reflected":
        wave = F.pad(wave, (n_fft // 2, n_fft // 2), mode="reflect")
        # A shorter window lies in the middle of its frame.
        window = F.pad(window, ((n_fft - length) // 2, n_fft - length - (n_fft - length) // 2))
        length = n_fft
    elif ends == "zeros":
        steps = -(-max(0, wave.shape[1] - length) // hop)
        wave = F.pad(wave, (0, steps * hop + length - wave.shape[1]))
    frames = wave.unfold(1, length, hop)
    if remove_mean:
        frames = frames - frames.mean(2, keepdim=True)
    spectrum = torch.fft.rfft(frames * window.to(frames.dtype), n_fft)
    energy = (spectrum.real.square() + spectrum.imag.square()) @ bands.to(frames.dtype).T
    if logarithm == "decibels":
        energy = 10 * torch.log10(energy.clamp_min(floor))
    elif logarithm == "natural":
        energy = torch.where(energy == 0, floor, energy).log()
    level = energy.transpose(1, 2)
    if mean is not None:
        level = level - mean.to(level.dtype)[:, None]
    if std is not None:
        level = level / std.to(level.dtype)[:, None]
    return level
