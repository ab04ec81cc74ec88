"""Measure one case: a record of plain JSON values."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import torch

from cmx_fast.ops import implementations

from . import memory, timing
from .case import Case, Goal
from .peers.packages import MissingPeerError
from .provider import Provider
from .registry import ERROR_ROWS, OPERATORS

ROOT = Path(__file__).resolve().parents[1]
UNIT = "U"


def result_error(case: Case, provider: Provider, device: str = "cpu") -> float:
    """Relative L2 distance of the gradient, or the result, from that of the same formula and inputs in float64."""
    problem = case.problem(provider, device)
    exact = problem.to(torch.float64)
    truth = exact.result(Provider(lambda p: lambda: provider.truth(p), provider.truth).step(exact)())
    found = problem.result(provider.step(problem)())
    return ((found - truth).norm() / truth.norm()).item()


def source_hashes(operator: str) -> dict[str, str]:
    """Fingerprints of the files that an operator's figures speak of, by their path in the repository."""
    others = tuple(name for name in OPERATORS if name != operator)
    folders = [ROOT / name for name in ("csrc", "kernels", "cmx_fast/ops")]
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".cpp", ".cu", ".cuh", ".h", ".py")
    ]
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(files)
        if not path.stem.startswith(others) and "host" not in path.parts
    }


#: What is made of PyTorch's own operators.
LAYER = {"cpu": ("pytorch", ""), "cuda": ("pytorch", "")}


def measure(case: Case, *, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Time, memory and error of every provider of a case, as far as the case asks for them."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in case.providers}
    record: dict[str, Any] = {
        "operator": case.operator,
        "title": case.title,
        "dtype": str(case.dtype).removeprefix("torch."),
        "shape": {"n": case.n, "d": case.d, "bank": case.bank, "clusters": case.clusters, "size": case.size},
        "implementation": implementations().get(case.operator, LAYER)[device][0],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "sources": source_hashes(case.operator),
        "providers": rows,
    }
    for name, provider in case.contenders().items():
        if provider.package is not None:
            try:
                rows[name]["version"] = importlib.metadata.version(provider.package)
            except importlib.metadata.PackageNotFoundError:
                rows[name]["skipped"] = f"{provider.package} is not installed"
    timings = _time(case, rows, seconds, device) if "time" in case.measures else {}
    if UNIT in timings:
        record |= {"unit": case.unit_name, "unit_ms": 1e3 * timings[UNIT].median}
    for name, provider in case.contenders().items():
        if "skipped" in rows[name]:
            continue
        if "error" in case.measures:
            rows[name]["error"] = result_error(case.resized(ERROR_ROWS), provider, device)
        if "memory" in case.measures:
            try:
                rows[name]["peak_mb"] = _peak(case, name, device) / memory.MB
            except memory.MemoryMeterError as error:
                rows[name]["peak_mb"], rows[name]["peak_missing"] = None, str(error)
    if "memory" in case.measures:
        problem = case.problem(next(iter(case.contenders().values())), device)
        leaves = (problem[name] for name in problem.leaves)
        record["gradients_mb"] = sum(leaf.numel() * leaf.element_size() for leaf in leaves) / memory.MB
    record["goals"] = [_judge(goal, rows, timings, record.get("gradients_mb", 0.0)) for goal in case.goals]
    return record


def _time(
    case: Case, rows: dict[str, dict[str, Any]], seconds: float, device: str
) -> dict[str, timing.Timing]:
    steps = {UNIT: case.unit(device)}
    for name, provider in case.contenders().items():
        if "skipped" in rows[name]:
            continue
        try:
            steps[name] = provider.step(case.problem(provider, device))
        except MissingPeerError as error:
            rows[name]["skipped"] = str(error)
    clock = timing.cuda_clock if device == "cuda" else timing.wall_clock
    timings = timing.interleaved(steps, seconds=seconds, clock=clock)
    for name, result in timings.items():
        if name != UNIT:
            rows[name] |= {
                "ms": 1e3 * result.median,
                "units": timing.ratio(result, timings[UNIT]),
                "spread": result.spread,
                "rounds": len(result.samples),
            }
    return timings


def _peak(case: Case, name: str, device: str) -> int:
    if device == "cpu":
        return memory.in_fresh_process(case, name, torch.get_num_threads())
    provider = case.contenders()[name]
    step = provider.step(case.problem(provider, device))
    step()  # compiles
    return memory.cuda_extra_peak(step)


def _judge(
    goal: Goal, rows: dict[str, dict[str, Any]], timings: dict[str, timing.Timing], gradients_mb: float
) -> dict[str, Any]:
    """A goal beside what was measured; None where a provider was missing."""
    measured: float | None = None
    if goal.kind == "speedup":
        if goal.of in timings and goal.against in timings:
            measured = timing.ratio(timings[goal.against], timings[goal.of])
    elif goal.kind in ("error", "memory_share", "working_share"):
        figure = "error" if goal.kind == "error" else "peak_mb"
        apart = gradients_mb if goal.kind == "working_share" else 0.0
        ours, theirs = rows[goal.of].get(figure), rows[goal.against].get(figure)
        measured = max(0.0, ours - apart) / (theirs - apart) if ours is not None and theirs else None
    else:
        measured = rows[goal.of].get(goal.kind)
    return {
        "what": goal.describe(),
        "of": goal.of,
        "kind": goal.kind,
        "against": goal.against,
        "least": goal.least,
        "reach": goal.reach,
        "measured": measured,
        "met": measured is not None and math.isfinite(measured) and goal.met(measured),
    }
