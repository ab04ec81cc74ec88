"""Checks that the loss modules share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch.distributed as dist
from torch import Tensor


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


def one_scale(logit_scale: Tensor | float | None, temperature: Tensor | float | None) -> dict[str, Any]:
    """The one of the two that is given, as the argument of an operator."""
    if (logit_scale is None) == (temperature is None):
        raise ValueError(
            f"one of logit_scale and temperature must be given, got {logit_scale} and {temperature}; logit_scale "
            "is 1 / temperature"
        )
    return {"logit_scale": logit_scale} if temperature is None else {"temperature": temperature}


def check_process_group(loss: str, rank: int, world_size: int) -> None:
    """Require the process group that a loss's constructor was given; it may be made after the loss."""
    if world_size < 2:
        return
    there = dist.is_available() and dist.is_initialized()
    actual = (dist.get_rank(), dist.get_world_size()) if there else (0, 1)
    if (rank, world_size) != actual:
        raise ValueError(
            f"{loss} was told rank={rank}, world_size={world_size}, but torch.distributed says {actual[0]} and "
            f"{actual[1]}; call torch.distributed.init_process_group first, and pass what it says"
        )
