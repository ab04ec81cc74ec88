"""The log-mel spectrogram, the speech encoder's input."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cmx_fast._extras import require
from cmx_fast.ops import band_reach, band_spectrogram

_FLOOR = 1e-10


class LogMel(nn.Module):
    """The log-mel power spectrogram in decibels, ``10 log10(max(mel, 1e-10))``, standardised per mel band if fitted.

    Input ``(B, samples)`` or ``(samples,)``, float; output float32 ``(B, n_mels, 1 + samples // hop)``: with the
    defaults 6 s give (B, 128, 301). Frames are centred with reflected ends, Hann window of ``n_fft``, HTK mel
    scale from 0 to half the sample rate, filters of height one. CSIR gives n_fft 2048, hop 441 and 128 mels;
    scale, padding and floor are ours.

    ``mean`` and ``std`` (buffers, shape ``(n_mels,)``, 0 and 1 until ``fit``) are kept in checkpoints. Always
    computed in float32, also under autocast: bfloat16 has too few bits for power over 100 dB.
    """

    mean: Tensor
    std: Tensor
    window: Tensor
    bands: Tensor
    reach: Tensor

    def __init__(
        self, sample_rate: int = 22050, n_fft: int = 2048, hop: int = 441, n_mels: int = 128
    ) -> None:
        super().__init__()
        for name, value in (("sample_rate", sample_rate), ("n_fft", n_fft), ("hop", hop), ("n_mels", n_mels)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.n_fft, self.hop = n_fft, hop
        functional = require("torchaudio.functional", "train")
        triangles = functional.melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("bands", triangles.T.contiguous(), persistent=False)
        self.register_buffer("reach", band_reach(self.bands), persistent=False)
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    def decibels(self, wave: Tensor) -> Tensor:
        """The spectrogram before standardisation."""
        return self._level(wave, None, None)

    def forward(self, wave: Tensor) -> Tensor:
        return self._level(wave, self.mean, self.std)

    def _level(self, wave: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        if wave.ndim not in (1, 2) or not wave.is_floating_point():
            raise ValueError(
                f"wave must be float (B, samples), got {wave.dtype} of shape {tuple(wave.shape)}"
            )
        if wave.shape[-1] <= self.n_fft // 2:
            raise ValueError(
                f"wave has {wave.shape[-1]} samples; centred frames of {self.n_fft} need over {self.n_fft // 2}"
            )
        level = band_spectrogram(
            wave.float().reshape(-1, wave.shape[-1]),
            self.window,
            self.bands,
            reach=self.reach,
            n_fft=self.n_fft,
            hop=self.hop,
            ends="reflected",
            logarithm="decibels",
            floor=_FLOOR,
            mean=mean,
            std=std,
        )
        return level[0] if wave.ndim == 1 else level

    @torch.no_grad()
    def fit(self, waves: Iterable[Tensor]) -> LogMel:
        """Set ``mean`` and ``std`` from the training set: ``waves`` yields batches ``(B, samples)``."""
        count = 0
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for batch in waves:
            level = self.decibels(batch).double().movedim(-2, 0).flatten(1)
            count += level.shape[1]
            total += level.sum(1)
            squares += level.square().sum(1)
        if count < 2:
            raise ValueError("waves holds no frames to take statistics from")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp_min(1e-6).sqrt())
        return self
