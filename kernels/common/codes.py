"""Integer codes in the operators' schemas, by the names that csrc gives them.

Imports no Triton, so that the operators can use them where there is none.
"""

from enum import IntEnum


class Logarithm(IntEnum):
    """Logarithm of a band's energy: ``cmx::Logarithm`` of csrc/cpu/tiles/spectra.h."""

    NONE = 0
    DECIBELS = 1
    NATURAL = 2
