"""Fair times: every contender in one process, in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Step = Callable[[], object]
Clock = Callable[[Step, int], float]

# A sample shorter than this repeats the step: neither the clock, nor what the contender before it left in the caches,
# nor threads that fell asleep meanwhile must show.
MIN_SAMPLE = 20e-3


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster: the median over rounds of the two samples taken next to each other."""
    return statistics.median(s / f for s, f in zip(slow.samples, fast.samples, strict=True))


def wall_clock(step: Step, number: int) -> float:
    """Seconds for ``number`` calls."""
    start = time.perf_counter()
    for _ in range(number):
        step()
    return time.perf_counter() - start


def cuda_clock(step: Step, number: int) -> float:
    """Seconds between two events around ``number`` calls on the current CUDA stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(number):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(
    steps: Mapping[str, Step],
    *,
    seconds: float = 20.0,
    rounds: tuple[int, int] = (3, 40),
    clock: Clock = wall_clock,
) -> dict[str, Timing]:
    """Time the steps in turn (A B C A B C ...) until ``seconds`` are over, within the given numbers of rounds.

    Each step first runs twice untimed; the second run decides how often a sample repeats it.
    """
    numbers = {}
    for name, step in steps.items():
        clock(step, 1)
        numbers[name] = max(1, math.ceil(MIN_SAMPLE / max(clock(step, 1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for number in range(rounds[1]):
            if number >= rounds[0] and time.perf_counter() - start > seconds:
                break
            for name, step in steps.items():
                samples[name].append(clock(step, numbers[name]) / numbers[name])
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def product_unit(n: int, m: int, d: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """The yardstick U: one (n, d) x (d, m) ``torch.mm`` into memory that is already there."""
    x, y = torch.randn(n, d, device=device, dtype=dtype), torch.randn(m, d, device=device, dtype=dtype)
    out = torch.empty(n, m, device=device, dtype=dtype)
    return lambda: torch.mm(x, y.T, out=out)


def copy_unit(elements: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Step:
    """The yardstick U of what only moves memory: one copy into memory that is already there."""
    x, out = (
        torch.randn(elements, device=device, dtype=dtype),
        torch.empty(elements, device=device, dtype=dtype),
    )
    return lambda: out.copy_(x)
