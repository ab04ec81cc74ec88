"""Takes fair times: every contender in one process, in turn, so that a disturbance meets all."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[[], object]
Clock = Callable[[Step, int], float]

# A sample shorter than this repeats the step, so that neither the clock, nor the caches that the contender before it
# left, nor threads that fell asleep meanwhile show.
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
        """The distance of the quartiles over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median


def ratio(slow: Timing, fast: Timing) -> float:
    """The factor by which ``slow`` is slower: the median over rounds of the ratio of two adjacent samples."""
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


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The step as a CUDA graph; a call replays it into the same result and gradients.

    Raises:
        RuntimeError: no CUDA device, or something in the step can't be captured.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("a CUDA graph needs a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compilation and workspaces, which are made once, must not be captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


class Marks:
    """Points in time on a device, as cheap there as an event, with the seconds between them once all have passed."""

    def __init__(self, device: str):
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the present moment, or the one at which the device gets here."""
        if self.device == "cpu":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """The seconds between each mark and the next."""
        if self.device == "cpu":
            return [after - before for before, after in itertools.pairwise(self._marks)]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(self._marks)]


def halves(
    forward: Callable[[], Any],
    backward: Callable[[Any], object],
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    rounds: tuple[int, int] = (3, 40),
) -> tuple[float, float]:
    """The median seconds of forward and of backward, measured in steps of both."""
    backward(forward())
    samples: list[list[float]] = []
    start = time.perf_counter()
    while len(samples) < rounds[0] or (len(samples) < rounds[1] and time.perf_counter() - start < seconds):
        marks = Marks(device)
        marks.mark()
        loss = forward()
        marks.mark()
        backward(loss)
        marks.mark()
        samples.append(marks.seconds())
    forward_seconds, backward_seconds = (statistics.median(half) for half in zip(*samples, strict=True))
    return forward_seconds, backward_seconds


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
    """The yardstick U of operators that only move memory: one copy into memory that is already there."""
    x, out = (
        torch.randn(elements, device=device, dtype=dtype),
        torch.empty(elements, device=device, dtype=dtype),
    )
    return lambda: out.copy_(x)
