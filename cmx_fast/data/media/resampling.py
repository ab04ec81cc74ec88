"""Resamples waves at a cost that the rates in a file's header can't blow up."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

#: Samples per second that a file may have; beyond them its header is broken.
RATES = range(1000, 768_001)
#: Largest term of the ratio of two rates: the filter has as many phases. All usual rates have smaller ones.
MOST_PHASES = 2000


def ratio(rate: int, wanted: int) -> tuple[int, int]:
    """``rate`` / ``wanted`` in lowest terms; for odd rates the nearest ratio with terms up to two thousand."""
    factor = Fraction(rate, wanted)
    if max(factor.numerator, factor.denominator) > MOST_PHASES:
        small = min(factor, 1 / factor).limit_denominator(MOST_PHASES)
        factor = small if factor < 1 else 1 / small if small else factor
    return factor.numerator, factor.denominator


def resample(wave: Tensor, rate: int, wanted: int) -> Tensor:
    """The wave at the wanted rate, band-limited (torchaudio's filter)."""
    if rate == wanted:
        return wave
    import torchaudio

    return torchaudio.functional.resample(wave, *ratio(rate, wanted))
