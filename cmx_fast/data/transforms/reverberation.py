"""Convolves dry speech with a room's impulse response."""

from __future__ import annotations

import torch
from torch import Tensor


def _smooth_length(minimum: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least ``minimum``: lengths for which the FFT is fast."""
    best = 1 << (minimum - 1).bit_length()
    power_of_five = 1
    while power_of_five < best:
        product = power_of_five
        while product < best:
            length = product << max(0, (-(-minimum // product) - 1).bit_length())
            best = min(best, length)
            product *= 3
        power_of_five *= 5
    return best


def reverberate(speech: Tensor, air: Tensor, length: int) -> Tensor:
    """Convolve speech with acoustic impulse responses by FFT, cut or zero-padded to ``length`` samples.

    speech ``(*, S)`` and air ``(*, A)``, both floating point on one device, with leading dimensions that
    broadcast; returns ``(*, length)`` whose sample n is the sum over k of ``air[k] * speech[n - k]``. Samples
    beyond ``length`` in either input can't reach the result and are dropped first. Differentiable in both.
    Cost: three real FFTs of at least ``min(S, length) + min(A, length) - 1`` points.
    """
    if length < 1:
        raise ValueError(f"length must be a positive number of samples, got {length}")
    for name, value in (("speech", speech), ("air", air)):
        if value.ndim < 1 or value.shape[-1] == 0:
            raise ValueError(
                f"{name} must be (*, samples) with at least one sample, got shape {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
    speech, air = speech[..., :length], air[..., :length]
    full = speech.shape[-1] + air.shape[-1] - 1
    points = _smooth_length(full)
    spectrum = torch.fft.rfft(speech, points) * torch.fft.rfft(air, points)
    wave = torch.fft.irfft(spectrum, points)[..., : min(full, length)]
    return torch.nn.functional.pad(wave, (0, length - wave.shape[-1]))


def peak_normalise(wave: Tensor) -> Tensor:
    """Scale ``(*, samples)`` so that the largest magnitude of each row is 1; silence stays silence."""
    peak = wave.abs().amax(dim=-1, keepdim=True)
    return wave / peak.clamp_min(torch.finfo(wave.dtype).tiny)


def damp(air: Tensor, sample_rate: int, rt60: float, factor: float) -> Tensor:
    """Shorten the decay of a response ``(samples,)`` to ``factor`` of its ``rt60`` seconds.

    The response is multiplied by an exponential that begins with its largest sample, the direct sound, as if the room's
    surfaces absorbed more. ``factor`` is in (0, 1]: a longer decay would lift the noise.
    """
    if not (0 < factor <= 1 and rt60 > 0):
        raise ValueError(f"factor must be in (0, 1] and rt60 above 0, got {factor} and {rt60}")
    time = torch.arange(len(air), dtype=air.dtype, device=air.device) - air.abs().argmax()
    return air * 10 ** (-3 * (1 / factor - 1) / rt60 * time.clamp_min(0) / sample_rate)
