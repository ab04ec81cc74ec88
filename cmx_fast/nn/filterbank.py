"""A log mel filterbank with the values of python_speech_features, the audio encoder's input in CMAC."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from cmx_fast.ops import band_reach, band_spectrogram

FULL_SCALE = 32768.0  # 1.0 in 16-bit audio
EMPTY = float(np.finfo(float).eps)  # python_speech_features' stand-in for a band without any energy


class LogFilterbank(nn.Module):
    """The natural log of mel filterbank energies, ``log(triangles @ |rfft(frames)|^2 / nfft)``, in 16-bit units.

    Input ``(B, samples)``, float in [-1, 1]; output float32 ``(B, filters, frames)`` with frames =
    ``1 + ceil((samples - window) / step)``: one second at the defaults gives (B, 257, 99). Equals
    ``python_speech_features.logfbank(int16).T``: pre-emphasis ``x[t] - preemph x[t - 1]``, frames without a window,
    the last one filled with zeros, triangles whose corners are whole bins. The lowest filters of 257 are narrower
    than a bin and therefore empty: there, and in digital silence, it is log(2.2e-16) = -36.04.

    257 filters are CMAC's; the other defaults are those of GDT's code. Always computed in float32, also under
    autocast. Costs one real FFT of ``nfft`` per frame and a product with (nfft / 2 + 1, filters).

    Args:
        winlen, winstep: seconds.

    Raises:
        ValueError: a number outside its range, a window longer than ``nfft``, or a wave of another shape or dtype.
    """

    scale: Tensor
    bands: Tensor
    reach: Tensor

    def __init__(
        self,
        sample_rate: int = 24000,
        winlen: float = 0.02,
        winstep: float = 0.01,
        nfft: int = 1024,
        preemph: float = 0.97,
        filters: int = 257,
    ) -> None:
        super().__init__()
        self.window, self.step = (math.floor(seconds * sample_rate + 0.5) for seconds in (winlen, winstep))
        for name, value in (("filters", filters), ("winlen", self.window), ("winstep", self.step)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (winlen and winstep: 1 sample), got {value}")
        if self.window > nfft:
            raise ValueError(f"nfft must hold the window's {self.window} samples, got {nfft}")
        self.nfft, self.preemph = nfft, preemph
        # No window, only the factor from [-1, 1] to 16-bit units.
        self.register_buffer("scale", torch.full((self.window,), FULL_SCALE), persistent=False)
        self.register_buffer(
            "bands", mel_triangles(sample_rate, nfft, filters).T.contiguous() / nfft, persistent=False
        )
        self.register_buffer("reach", band_reach(self.bands), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        if wave.ndim != 2 or not wave.is_floating_point() or wave.shape[1] == 0:
            raise ValueError(
                f"wave must be float (B, samples), got {wave.dtype} of shape {tuple(wave.shape)}"
            )
        return band_spectrogram(
            wave.float(),
            self.scale,
            self.bands,
            reach=self.reach,
            n_fft=self.nfft,
            hop=self.step,
            ends="zeros",
            preemphasis=self.preemph,
            logarithm="natural",
            floor=EMPTY,
        )


def mel_triangles(sample_rate: int, nfft: int, filters: int) -> Tensor:
    """Weights (nfft / 2 + 1, filters) float32 of triangles, even in mel from 0 to half the rate, corners on bins."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, filters + 2) / 2595) - 1)
    low, centre, high = (np.floor((nfft + 1) * corners / sample_rate)[i : filters + i] for i in range(3))
    bins = np.arange(nfft // 2 + 1)[:, None]
    rise = (bins - low) / np.maximum(centre - low, 1)
    fall = (high - bins) / np.maximum(high - centre, 1)
    weights = np.where(bins < centre, rise * (bins >= low), fall * (bins < high))
    return torch.from_numpy(weights.astype(np.float32))
