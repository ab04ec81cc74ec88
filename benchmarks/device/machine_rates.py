"""Measures the rates of a large product and a large copy on this machine, against which the run's cases are held."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..harness import timing
from .roofline import Chip

#: Side of the square products, and bytes of the copy.
SIDE = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 2**30, "cpu": 2**26}
#: Inputs together are this many times the last cache, so that each comes from memory.
TIMES_CACHE = 4
#: Bytes of a large CPU cache, since PyTorch doesn't tell the size of this machine's.
CPU_CACHE = 2**27
CALLS = {"cuda": 30, "cpu": 8}


def _cache(device: str) -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else CPU_CACHE


def _rotating(make: Callable[[], tuple[Tensor, ...]], device: str) -> Iterator[tuple[Tensor, ...]]:
    """Yield sets of random tensors in turn, too many for the cache, and at least two."""
    first = make()
    size = sum(tensor.numel() * tensor.element_size() for tensor in first)
    others = max(1, math.ceil(TIMES_CACHE * _cache(device) / size) - 1)
    return itertools.cycle([first, *(make() for _ in range(others))])


def _median(step: Callable[..., object], inputs: Iterator[tuple[Tensor, ...]], device: str) -> float:
    """The median seconds of a call, from marks between calls that follow each other without a gap."""
    for _ in range(3):
        step(*next(inputs))
    marks = timing.Marks(device)
    marks.mark()
    for _ in range(CALLS[device]):
        step(*next(inputs))
        marks.mark()
    return statistics.median(marks.seconds())


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a square product of normal numbers, two for each multiplication."""
    side = SIDE[device]

    def make() -> tuple[Tensor, ...]:
        return tuple(torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    out = torch.empty(side, side, device=device, dtype=dtype)
    seconds = _median(lambda x, y: torch.mm(x, y, out=out), _rotating(make, device), device)
    return 2 * side**3 / seconds


def copy_rate(device: str) -> float:
    """Bytes per second, read and written, of one copy in memory."""

    def make() -> tuple[Tensor, ...]:
        return tuple(torch.randn(COPIED[device] // 4, device=device) for _ in range(2))

    seconds = _median(lambda x, y: y.copy_(x), _rotating(make, device), device)
    return 2 * COPIED[device] / seconds


def measured(device: str) -> Chip:
    """This machine as a chip of the cost model, with the measured rates."""
    return Chip(
        "this machine",
        bfloat16=product_rate(device, torch.bfloat16),
        float32=product_rate(device, torch.float32),
        memory=copy_rate(device),
        product_share=1.0,
        copy_share=1.0,
    )


def describe(chip: Chip) -> str:
    """The rates as one line of text."""
    return (
        f"large products reach {chip.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16 and {chip.float32 / 1e12:.4g} in "
        f"float32, a large copy {chip.memory / 1e12:.3g} TB/s"
    )
