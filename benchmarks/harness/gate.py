"""Checks operators before they are measured: one that computes the wrong thing gets no figure."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .case import Case
from .measure import result_error
from .provider import OURS
from .registry import CASES

ROOT = Path(__file__).resolve().parents[2]
# The largest error of a case in the short check: rounding, with room for every machine.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
SMALL = 96  # rows or samples of it


@dataclass(frozen=True)
class Verdict:
    """The outcome of an operator's check, and the reason: only an operator that passed is reported."""

    passed: bool
    reason: str


def run_tests(operator: str) -> Verdict:
    """Run the operator's tests; where they don't lie beside the package (an installed wheel), the short check."""
    folder = ROOT / "tests" / "ops"
    tests = [*folder.glob(f"test_{operator}.py"), *folder.glob(f"test_{operator}_*.py")]
    if not tests:
        return short_check(operator)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, tests),
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1].strip("= ")
    names = " ".join(str(path.relative_to(ROOT)) for path in tests)
    return Verdict(done.returncode == 0, f"{names}: {last}")


def short_check(operator: str) -> Verdict:
    """:func:`check` of every timed case of the operator, on the CPU."""
    for case in CASES:
        if case.operator == operator and "time" in case.measures:
            verdict = check(case)
            if not verdict.passed:
                return verdict
    return Verdict(True, "short check against float64")


def check(case: Case, device: str = "cpu") -> Verdict:
    """Compare a case's gradients or results with float64 at a small size, for each of our implementations in it."""
    small = case.resized(SMALL)
    for name, provider in small.contenders().items():
        if not name.startswith(OURS):
            continue
        try:
            error = result_error(small, provider, device)
        except Exception:
            if name == OURS:
                raise
            continue  # it is not built, and the measurement names it
        if not error <= TOLERANCE[small.dtype]:
            return Verdict(False, f"{case.name}: {name} has an error of {error:.1e}")
    return Verdict(True, "as float64")
