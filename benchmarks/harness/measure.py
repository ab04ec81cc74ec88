"""Measures one case; the record has plain JSON values."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmx_fast.ops import implementations

from . import memory, timing
from .case import Case, Goal
from .provider import OURS, Loss, Provider
from .registry import ERROR_ROWS
from .sources import source_hashes

UNIT = "U"
#: Rows at which a peer has to agree with its own formula, and the largest error that still counts as rounding.
PEER_ROWS, PEER_TOLERANCE = 512, 0.05


def result_error(case: Case, provider: Provider, device: str = "cpu") -> float:
    """The relative L2 distance of the gradient, or the result, from that of the same formula and inputs in float64."""
    problem = case.problem(provider, device)
    exact = problem.to(torch.float64)
    truth = exact.result(Provider(lambda p: lambda: provider.truth(p), provider.truth).step(exact)())
    result = problem.result(provider.step(problem)())
    return ((result - truth).norm() / truth.norm()).item()


#: The implementation of layers that are made of PyTorch's own operators.
LAYER = {"cpu": ("pytorch", ""), "cuda": ("pytorch", "")}


def measure(case: Case, *, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Measure the time, memory and error of every provider of a case, as far as the case asks for them."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in case.providers}
    record: dict[str, Any] = {
        "operator": case.operator,
        "title": case.title,
        "dtype": str(case.dtype).removeprefix("torch."),
        "shape": {"n": case.n, "d": case.d, "bank": case.bank, "clusters": case.clusters, "size": case.size},
        "implementation": implementations().get(case.operator, LAYER)[device][0],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "sources": source_hashes(case.operator, device),
        "providers": rows,
    }
    for name, provider in case.contenders().items():
        rows[name] |= _admitted(case, name, provider, device)
    bound: dict[str, Bound] = {}
    if "time" in case.measures or ("memory" in case.measures and device == "cuda"):
        bound = _bound(case, rows, device)
    timings = _time(case, bound, rows, seconds, device) if "time" in case.measures else {}
    if UNIT in timings:
        record |= {"unit": case.unit_name, "unit_ms": 1e3 * timings[UNIT].median}
    for name, provider in case.contenders().items():
        if "memory" in case.measures and "skipped" not in rows[name]:
            try:
                rows[name]["peak_mb"] = _peak(case, name, bound, device) / memory.MB
            except memory.MemoryMeterError as error:
                rows[name]["peak_mb"], rows[name]["peak_missing"] = None, str(error)
        if "error" in case.measures and "skipped" not in rows[name]:
            rows[name] |= _error(case, name, provider, device)
    if "memory" in case.measures:
        problem = case.problem(next(iter(case.contenders().values())), device)
        leaves = (problem[name] for name in problem.leaves)
        record["gradients_mb"] = sum(leaf.numel() * leaf.element_size() for leaf in leaves) / memory.MB
    record["goals"] = [_judge(goal, rows, timings, record.get("gradients_mb", 0.0)) for goal in case.goals]
    return record


def _admitted(case: Case, name: str, provider: Provider, device: str) -> dict[str, Any]:
    """The version of a peer's package; "skipped", with the reason, where it is missing, fails or gives another result.

    In cases that only ask for errors, a large one is an answer.
    """
    if name.startswith(OURS) and not (provider.captured and device == "cpu"):
        return {}
    row: dict[str, Any] = {}
    try:
        if provider.package is not None:
            row["version"] = importlib.metadata.version(provider.package)
        if provider.captured and device == "cpu":
            raise RuntimeError("a CUDA graph needs a CUDA device")
        if provider.package is not None:
            error = result_error(case.resized(PEER_ROWS), provider, device)
            if "time" in case.measures and not error <= PEER_TOLERANCE:
                raise RuntimeError(f"its result is {error:.1g} from float64's, relative")
    except importlib.metadata.PackageNotFoundError:
        row["skipped"] = f"{provider.package} is not installed"
    except Exception as error:  # others' code may raise anything
        row["skipped"] = reason(error)
    return row


def reason(error: Exception) -> str:
    """The first line of an error's message, after its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__


def _error(case: Case, name: str, provider: Provider, device: str) -> dict[str, Any]:
    """The error at ERROR_ROWS, a mark that it is not finite, or the reason why a peer has none."""
    try:
        error = result_error(case.resized(ERROR_ROWS), provider, device)
    except Exception as failure:
        if name == OURS:
            raise
        return {"skipped": reason(failure)}
    return {"error": error} if math.isfinite(error) else {"error": None, "finite": False}


@dataclass(frozen=True)
class Bound:
    """A contender bound to the case's inputs, once, since compiling it again takes longer than measuring it."""

    forward: Loss
    backward: Callable[[Tensor], None]
    step: Loss
    leaves: tuple[str, ...]


def _bound(case: Case, rows: dict[str, dict[str, Any]], device: str) -> dict[str, Bound]:
    """The contenders that are there; on a GPU each runs once, which shows if memory ends or a peer's kernel fails."""
    bound: dict[str, Bound] = {}
    for name, provider in case.contenders().items():
        if "skipped" in rows[name]:
            continue
        try:
            problem = case.problem(provider, device)
            forward, backward = provider.halves(problem)
            step = provider.joined(forward, backward)
            if device == "cuda":
                step()
            bound[name] = Bound(forward, backward, step, problem.leaves)
        except Exception as error:
            if name == OURS:
                raise
            rows[name]["skipped"] = reason(error)
        if name not in bound:
            memory.release(device)  # after the block: within, the error holds the step's tensors
    return bound


def _time(
    case: Case, bound: dict[str, Bound], rows: dict[str, dict[str, Any]], seconds: float, device: str
) -> dict[str, timing.Timing]:
    """Time whole steps in turn, then each contender's forward and backward apart."""
    clock = timing.cuda_clock if device == "cuda" else timing.wall_clock
    steps = {UNIT: case.unit(device), **{name: contender.step for name, contender in bound.items()}}
    timings = timing.interleaved(steps, seconds=seconds, clock=clock)
    for name, contender in bound.items():
        result, provider = timings[name], case.contenders()[name]
        rows[name] |= {
            "ms": 1e3 * result.median,
            "units": timing.ratio(result, timings[UNIT]),
            "spread": result.spread,
            "rounds": len(result.samples),
        }
        if contender.leaves and not provider.captured:
            forward, backward = timing.halves(
                contender.forward, contender.backward, device=device, seconds=seconds / 4 / len(steps)
            )
            rows[name] |= {"forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward}
    return timings


def _peak(case: Case, name: str, bound: dict[str, Bound], device: str) -> int:
    if device == "cpu":
        return memory.in_fresh_process(case, name, torch.get_num_threads())
    return memory.cuda_extra_peak(bound[name].step)


def _judge(
    goal: Goal, rows: dict[str, dict[str, Any]], timings: dict[str, timing.Timing], gradients_mb: float
) -> dict[str, Any]:
    """A goal with its measured figure, which is None where a provider was missing."""
    measured: float | None = None
    if goal.kind == "speedup":
        if goal.provider in timings and goal.against in timings:
            measured = timing.ratio(timings[goal.against], timings[goal.provider])
    elif goal.kind in ("error", "memory_share", "working_share"):
        figure = "error" if goal.kind == "error" else "peak_mb"
        apart = gradients_mb if goal.kind == "working_share" else 0.0
        ours, theirs = rows[goal.provider].get(figure), rows[goal.against].get(figure)
        measured = max(0.0, ours - apart) / (theirs - apart) if ours is not None and theirs else None
    else:
        measured = rows[goal.provider].get(goal.kind)
    return {
        "what": goal.describe(),
        "of": goal.provider,
        "kind": goal.kind,
        "against": goal.against,
        "least": goal.least,
        "reach": goal.reach,
        "measured": measured,
        "met": measured is not None and math.isfinite(measured) and goal.met(measured),
    }
