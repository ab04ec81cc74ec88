"""Reverberation time of an impulse response by Schroeder's backward integration, with its noise taken out.

ISO 3382-1 wants the background noise 10 dB below the end of what is fitted. Where the noise begins is found as Lundeby
et al., "Uncertainties of measurements in room acoustics" (1995), do it: from the level of the last part, the slope of
what lies above that, and where the two cross, a few times over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIT_START_DB = -5.0
FIT_END_DB = -25.0
#: The decay has to be seen down to here: the noise, or the end of the file, must come 10 dB below the fit (ISO 3382-1).
SEEN_DB = FIT_END_DB - 10.0

#: The direct sound arrives with the first sample that is within 20 dB of the largest (ISO 3382-1).
_ARRIVAL = 0.1
#: Averages over windows of so many seconds, and of at least so many samples, make the envelope; once the slope is known
#: a window lasts while the decay falls by so much (Lundeby: 3 to 10 windows for 10 dB).
_WINDOW_SECONDS, _WINDOW_SAMPLES, _WINDOW_DB = 0.01, 32, 2.5
#: Lundeby's: the noise is measured on at least this share of the response, its end.
_TAIL = 0.1
#: Lundeby's: the slope is fitted from this many dB above the noise over as many dB again.
_ABOVE_NOISE_DB, _RANGE_DB = 8.0, 20.0
_ROUNDS = 8


@dataclass(frozen=True)
class _Floor:
    """The end of a decay: before the sample ``end``, in the stationary ``noise`` (energy per sample).

    ``beyond`` is the energy that the decay would still have brought from there on.
    """

    end: int
    noise: float
    beyond: float


def energy_decay_curve(response: NDArray[np.floating]) -> NDArray[np.float64]:
    """The energy still to come at each sample, in dB relative to the whole (0 at the first sample).

    ``response`` is one channel, shape ``(samples,)``; where nothing is left the curve is ``-inf``.
    """
    return _integrated(_energy(response), 0.0)


def reverberation_time(response: NDArray[np.floating], sample_rate: int) -> float:
    """RT60 in seconds, full band: three times T20, the fit of the decay from -5 to -25 dB.

    The range is the one that Image2Reverb's own tool uses. Samples before the direct sound are left out. Stationary
    noise is subtracted, the integration ends where the decay meets it, and the energy that the decay would have held
    beyond is added (Guski and Vorlaender, "Comparison of noise compensation methods", 2014, method E).

    Returns:
        NaN where the decay can't be seen: noise or the file's end come before -35 dB. 0.0 for a response that falls
        through the range within one sample (a lone impulse): it has no reverberation.
    """
    energy = _energy(response)
    arrival, stop = int(np.argmax(energy >= _ARRIVAL**2 * energy.max())), int(np.flatnonzero(energy)[-1]) + 1
    energy = energy[arrival:stop]  # zeros at the end are the file's, not a noise floor
    if energy[2:].sum() <= 10 ** (FIT_END_DB / 10) * energy.sum():
        return 0.0
    floor = _floor(energy, sample_rate)
    if floor is None:
        return float("nan")
    curve = _integrated(energy[: floor.end] - floor.noise, floor.beyond)
    if not curve[-1] <= SEEN_DB:
        return float("nan")
    first, last = (int(np.argmax(curve <= level)) for level in (FIT_START_DB, FIT_END_DB))
    if last - first < 2:
        return 0.0
    slope_per_sample = np.polyfit(np.arange(first, last), curve[first:last], 1)[0]
    return float(-60.0 / (slope_per_sample * sample_rate))


def _energy(response: NDArray[np.floating]) -> NDArray[np.float64]:
    """The squares of one channel, relative to the largest; refuses silence."""
    samples = np.asarray(response, dtype=np.float64)
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(
            f"response must be one non-empty channel of shape (samples,), got shape {samples.shape}"
        )
    largest = np.abs(samples).max()
    if not np.isfinite(largest) or largest == 0:
        raise ValueError(
            "response must be finite and hold some energy; it is silent or has NaN or infinity in it"
        )
    return np.square(samples / largest)


def _integrated(energy: NDArray[np.float64], beyond: float) -> NDArray[np.float64]:
    """The energy still to come at each sample and ``beyond`` the last, in dB relative to the whole."""
    remaining = np.cumsum(energy[::-1])[::-1] + beyond
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.maximum(remaining / remaining[0], 0))


def _floor(energy: NDArray[np.float64], sample_rate: int) -> _Floor | None:
    """Lundeby's intersection of the late decay with the noise; None where there is no decay to be seen."""
    width = max(_WINDOW_SAMPLES, round(_WINDOW_SECONDS * sample_rate))
    held = energy[-max(1, round(_TAIL * energy.size)) :].mean()
    noise = held
    for _ in range(_ROUNDS):
        width = max(_WINDOW_SAMPLES, min(width, energy.size // 20))
        if energy.size < 5 * width:
            return None
        means = energy[: energy.size // width * width].reshape(-1, width).mean(1)
        centres = (np.arange(len(means)) + 0.5) * width
        with np.errstate(divide="ignore"):
            levels = 10 * np.log10(means)
        to_come = np.maximum.accumulate(levels[::-1])[::-1]  # a pause between two echoes is no end
        lowest = 10 * np.log10(held) + _ABOVE_NOISE_DB
        stop = int(np.count_nonzero(to_come >= lowest)) if noise else len(means)
        start = min(int(np.count_nonzero(to_come >= lowest + _RANGE_DB)), stop - 5)
        start = max(start, int(np.argmax(levels)))
        fitted = start + np.flatnonzero(np.isfinite(levels[start:stop]))
        if len(fitted) < 3:
            return None
        slope, offset = np.polyfit(centres[fitted], levels[fitted], 1)
        if slope >= 0:
            return None
        end = (10 * np.log10(noise) - offset) / slope if noise else energy.size
        behind = min(round((1 - _TAIL) * energy.size), int(end - _ABOVE_NOISE_DB / slope))
        held = energy[behind:].mean()
        # The decay's own energy there is not noise; where it is most of the energy, no floor is seen.
        level = held - np.mean(10 ** ((slope * np.arange(behind, energy.size) + offset) / 10))
        level = level if level > 0.5 * held else 0.0
        wider = round(-_WINDOW_DB / slope)
        settled = abs(level - noise) <= 0.01 * noise and wider == width
        noise, width = level, wider
        if settled:
            break
    end = int(np.clip((10 * np.log10(noise) - offset) / slope if noise else energy.size, 1, energy.size))
    per_sample = 10 ** (slope / 10)
    return _Floor(end, noise, 10 ** ((slope * end + offset) / 10) / (1 - per_sample))
