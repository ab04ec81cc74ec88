"""Checks that the loss modules share."""

from __future__ import annotations

import math
from numbers import Real


def check_temperature(name: str, value: float) -> float:
    """A positive, finite number of any type, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
