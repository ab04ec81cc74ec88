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


def temperature_of(temperature: float, logit_scale: float | None, default: float) -> float:
    """The temperature of a loss, or 1 / logit_scale where that is given.

    Args:
        default: the object that stands as the temperature's default in the caller's signature. A temperature that is
            another object was given.
    """
    if logit_scale is None:
        return check_temperature("temperature", temperature)
    if temperature is not default:
        raise ValueError(
            f"temperature and logit_scale can't both be given, got {temperature} and {logit_scale}; pass one of them "
            "(logit_scale is 1 / temperature)"
        )
    return 1 / check_temperature("logit_scale", logit_scale)
