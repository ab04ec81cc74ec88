"""Checks that the loss modules share."""

from __future__ import annotations

import math


def check_temperature(name: str, value: float) -> None:
    """Require a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
