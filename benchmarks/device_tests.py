"""Runs the tests of tests/device, most important first, and says which operators failed them on their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "tests/device"
#: What goes wrong silently first; what takes longest last.
FILES = (
    "test_graphs",
    "test_edges",
    "test_repeatability",
    "test_streams",
    "test_out_of_memory",
    "test_large",
    "test_modes",
)
OUTCOME = re.compile(r"^(\S+\.py::\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)
#: One call of every operator at a small size: under the sanitizer a kernel takes many times longer.
SANITIZED = "tests/kernels/test_launches.py"
CHECKS = ("memcheck", "racecheck")


class Outcomes(NamedTuple):
    """Tests by their ids, in the order in which they ran, and whether all that were asked for did."""

    passed: list[str]
    failed: list[str]
    finished: bool
    last: str


def run_pytest(arguments: Iterable[str], seconds: float, root: Path = ROOT) -> Outcomes:
    """Tests in a process of their own; what had run when the time was up, or the process died, counts."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments]
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                command, cwd=root, stdout=output, stderr=subprocess.STDOUT, timeout=seconds, check=False,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            finished = done.returncode in (0, 1, 5)  # all passed, some failed, none selected
        except subprocess.TimeoutExpired:
            finished = False
        output.seek(0)
        text = output.read()
    outcomes = OUTCOME.findall(text)
    failed = [test for test, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    if failed or not finished:
        print("\n".join(f"  {line}" for line in text.splitlines()[-60:]))
    passed = [test for test, outcome in outcomes if outcome == "PASSED"]
    last = (text.strip() or "no output").splitlines()[-1].strip("= ")
    return Outcomes(passed, failed, finished, last)


def operator_of(test: str, operators: Iterable[str]) -> str | None:
    """The operator that a test's id names; None for tests of the suite itself."""
    name = test.partition("::")[2]
    return max((stem for stem in operators if stem in name), key=len, default=None)


def failed_operators(
    operators: list[str], deadline: float, *, only: bool = False, root: Path = ROOT
) -> dict[str | None, list[str]]:
    """The failed tests of each operator, and under None those of the suite itself; ``only``: no others are run.

    An illegal access spoils the process for the operators that follow. So where several fail in a file, each is tried
    again alone, and counts only if it fails there, or if there is no time left to try.
    """
    failures: dict[str | None, list[str]] = {}
    # The same on the CPU is no news here.
    selected = f"not cpu and ({' or '.join(operators)})" if only else "not cpu"
    for file in FILES:
        left = deadline - time.monotonic()
        if left <= 0:
            print(f"{FOLDER}/{file}.py: no time left")
            continue
        outcomes = run_pytest([f"{FOLDER}/{file}.py", "-k", selected], left, root)
        unfinished = "" if outcomes.finished else ", NOT FINISHED"
        print(
            f"{FOLDER}/{file}.py: {len(outcomes.passed)} passed, {len(outcomes.failed)} failed{unfinished}",
            flush=True,
        )
        found: dict[str | None, list[str]] = {}
        for test in outcomes.failed:
            found.setdefault(operator_of(test, operators), []).append(test)
        for operator, tests in found.items():
            alone = tests
            left = deadline - time.monotonic()
            if operator is not None and len(found) > 1 and left > 0:
                again = run_pytest([f"{FOLDER}/{file}.py", "-k", f"not cpu and {operator}"], left, root)
                alone = again.failed if again.finished else tests
            if alone:
                failures.setdefault(operator, []).extend(alone)
        if not outcomes.finished and time.monotonic() < deadline:
            # What it had not reached is unknown.
            failures.setdefault(None, []).append(f"{FOLDER}/{file}.py died: {outcomes.last}")
    return failures


def sanitize(seconds: float) -> int:
    """Every kernel once under compute-sanitizer's memcheck and racecheck: 0 without a finding, 2 without the tool."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print(
            "benchmarks.device: compute-sanitizer is not on PATH (it comes with the CUDA toolkit); nothing was run"
        )
        return 2
    deadline, found = time.monotonic() + seconds, 0
    for check in CHECKS:
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "pytest", SANITIZED]
        try:
            # Of one large cached block no access is out of bounds.
            done = subprocess.run(
                [*command, "-q", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False,
                timeout=max(1.0, deadline - time.monotonic()),
                env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"compute-sanitizer {check}: NOT FINISHED in time")
            found += 1
            continue
        if done.returncode:
            found += 1
            print("\n".join(f"  {line}" for line in done.stdout.splitlines()[-60:]))
        print(f"compute-sanitizer {check}: {'FAILED' if done.returncode else 'nothing found'}", flush=True)
    return 1 if found else 0
