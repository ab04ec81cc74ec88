"""Reverberation time of an impulse response by Schroeder's backward integration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIT_START_DB = -5.0
FIT_END_DB = -25.0


def energy_decay_curve(response: NDArray[np.floating]) -> NDArray[np.float64]:
    """Energy that is still to come at each sample, in dB relative to the whole (0 at the first sample).

    ``response`` is one channel, shape ``(samples,)``; where nothing is left the curve is ``-inf``.
    """
    energy = np.square(np.asarray(response, dtype=np.float64))
    if energy.ndim != 1 or energy.size == 0:
        raise ValueError(
            f"response must be one non-empty channel of shape (samples,), got shape {energy.shape}"
        )
    remaining = np.cumsum(energy[::-1])[::-1]
    if not np.isfinite(remaining[0]) or remaining[0] == 0:
        raise ValueError(
            "response must be finite and hold some energy; it is silent or has NaN or infinity in it"
        )
    with np.errstate(divide="ignore"):
        return 10 * np.log10(remaining / remaining[0])


def reverberation_time(response: NDArray[np.floating], sample_rate: int) -> float:
    """RT60 in seconds, full band: three times T20, the fit of the decay from -5 to -25 dB.

    The range is the one that Image2Reverb's own tool uses. A response that falls through it within one sample
    (a lone impulse) has no reverberation: 0.0. The response should decay into digital silence; a recorded one
    whose noise floor lies above -35 dB comes out too long.
    """
    curve = energy_decay_curve(response)
    below_start = curve <= FIT_START_DB
    below_end = curve <= FIT_END_DB
    first = int(np.argmax(below_start)) if below_start.any() else curve.size
    last = int(np.argmax(below_end)) if below_end.any() else curve.size
    if last - first < 2:
        return 0.0
    slope_per_sample = np.polyfit(np.arange(first, last), curve[first:last], 1)[0]
    return float(-60.0 / (slope_per_sample * sample_rate))
