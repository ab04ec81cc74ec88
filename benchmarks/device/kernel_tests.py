"""Runs the tests of the GPU kernels side by side and finds the operators that fail them on their own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KERNELS, FOLDER = "tests/kernels", "tests/device"
#: The files of tests/device: silent faults first, long tests last.
FILES = (
    "test_graphs",
    "test_edges",
    "test_repeatability",
    "test_streams",
    "test_out_of_memory",
    "test_modes",
)
LARGE = "test_large"  # alone: it takes tens of gigabytes
MOST_WORKERS = 8  # ours; each holds half a gigabyte of the GPU
OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)"
SERIAL = re.compile(rf"^(tests/\S+?\.py::.+?) {OUTCOME}(?: \(.*)? *(?:\[ *\d+%\])?$", re.MULTILINE)
SIDE_BY_SIDE = re.compile(rf"^\[gw\d+\] \[ *\d+%\] {OUTCOME} (tests/\S+?\.py::.+?) *$", re.MULTILINE)
OF_ALL = ("launches", "operators")  # of tests/kernels: these files call every operator
#: One call of every operator at a small size: under the sanitizer a kernel takes many times longer.
SANITIZED = "tests/kernels/test_launches.py"
CHECKS = ("memcheck", "racecheck")


class Outcomes(NamedTuple):
    """Tests by their ids, in the order in which they ran; ``finished`` if all of them did."""

    passed: list[str]
    failed: list[str]
    skipped: list[str]
    finished: bool
    last: str

    def ran(self) -> set[str]:
        return {*self.passed, *self.failed, *self.skipped}


def kernel_files(root: Path = ROOT) -> list[str]:
    """The tests of launchers, without those that only compile."""
    names = sorted(path.name for path in (root / KERNELS).glob("test_*.py"))
    return [f"{KERNELS}/{name}" for name in names if not name.startswith("test_compile")]


def tested() -> list[str]:
    """The operators with tests for a device: tests/kernels/test_<operator>.py, and with it test_<operator>_*.py."""
    names = [Path(file).stem.removeprefix("test_") for file in kernel_files()]
    parts = {name for name in names for other in names if name.startswith(f"{other}_")}
    return [name for name in names if name not in parts and name not in OF_ALL]


def workers() -> int:
    """The number of processes that share the tests: one takes ten minutes to compile a thousand kernels."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return min(MOST_WORKERS, os.cpu_count() or 1)


def run_pytest(
    arguments: Iterable[str], seconds: float, root: Path = ROOT, *, processes: int = 1
) -> Outcomes:
    """Run tests in processes of their own; those that ran before the time was up or the process died count."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if processes > 1:
        command += ["-n", str(processes), "--dist", "worksteal"]
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment |= {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            # All passed, some failed, none selected.
            finished = process.wait(seconds) in (0, 1, 5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            finished = False
        output.seek(0)
        text = output.read()
    outcomes = SERIAL.findall(text) + [(test, outcome) for outcome, test in SIDE_BY_SIDE.findall(text)]
    failed = list(dict.fromkeys(test for test, outcome in outcomes if outcome in ("FAILED", "ERROR")))
    if failed or not finished:
        print("\n".join(f"  {line}" for line in text.splitlines()[-60:]))
    passed = [test for test, outcome in outcomes if outcome == "PASSED" and test not in failed]
    skipped = [test for test, outcome in outcomes if outcome in ("SKIPPED", "XFAIL")]
    last = (text.strip() or "no output").splitlines()[-1].strip("= ")
    return Outcomes(passed, failed, skipped, finished, last)


def collected(arguments: Iterable[str], root: Path = ROOT) -> list[str]:
    """The tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if ".py::" in line]


def operator_of(test: str, operators: Iterable[str]) -> str | None:
    """The operator in a test's file name or else in its own; None for tests of the suite itself."""
    path, _, name = test.partition("::")
    file = Path(path).stem.removeprefix("test_")
    by_file = [stem for stem in operators if f"{file}_".startswith(f"{stem}_")]
    return max(by_file or [stem for stem in operators if stem in name], key=len, default=None)


def failed_operators(
    operators: list[str], deadline: float, *, only: bool = False, root: Path = ROOT
) -> dict[str | None, list[str]]:
    """The failed tests of each operator, and under None those of the suite itself; ``only``: run no others.

    An illegal access spoils the process for the tests that follow. So where several operators fail together, the failed
    tests of each are tried again alone, and count only if they fail there, or if there is no time left to try. Without
    a result in time, a test of a kernel counts as failed, those of tests/device under None.
    """
    failures: dict[str | None, list[str]] = {}
    # The CPU's tests ran elsewhere.
    selected = f"not cpu and ({' or '.join(operators)})" if only else "not cpu"
    together = kernel_files(root) + [f"{FOLDER}/{file}.py" for file in FILES]
    large = f"{FOLDER}/{LARGE}.py"
    for what, files, processes in (
        ("tests of every kernel, graphs, streams, memory", together, workers()),
        (large, [large], 1),
    ):
        left = deadline - time.monotonic()
        if left <= 0:
            failures.setdefault(None, []).append(f"{what}: no time left")
            continue
        arguments = [*files, "-k", selected]
        outcomes = run_pytest(arguments, left, root, processes=processes)
        counts = (
            f"{len(outcomes.passed)} passed, {len(outcomes.failed)} failed, {len(outcomes.skipped)} skipped"
        )
        unfinished = "" if outcomes.finished else ", NOT FINISHED"
        print(f"{what}, {processes} side by side: {counts}{unfinished}", flush=True)
        for operator, tests in _alone(outcomes.failed, operators, deadline, root).items():
            failures.setdefault(operator, []).extend(tests)
        if not outcomes.finished:
            failures.setdefault(None, []).append(f"{what} not finished: {outcomes.last}")
            for test in collected(arguments, root):
                if test.startswith(KERNELS) and test not in outcomes.ran():
                    failures.setdefault(operator_of(test, operators), []).append(f"{test} (no result)")
    return failures


def _alone(
    failed: list[str], operators: list[str], deadline: float, root: Path
) -> dict[str | None, list[str]]:
    """The failed tests, by operator, that also fail without the other operators' tests."""
    by_operator: dict[str | None, list[str]] = {}
    for test in failed:
        by_operator.setdefault(operator_of(test, operators), []).append(test)
    if len(by_operator) < 2:
        return by_operator
    for operator, tests in by_operator.items():
        left = deadline - time.monotonic()
        again = run_pytest(tests, left, root) if left > 0 else None
        if again is not None and again.finished:
            by_operator[operator] = again.failed
    return {operator: tests for operator, tests in by_operator.items() if tests}


def sanitize(seconds: float) -> int:
    """Run every kernel once under compute-sanitizer's memcheck and racecheck.

    Returns:
        0 without a finding, 1 with one, 2 without the tool.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print(
            "benchmarks.device: compute-sanitizer is not on PATH (it comes with the CUDA toolkit); nothing was run"
        )
        return 2
    deadline, findings = time.monotonic() + seconds, 0
    for check in CHECKS:
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "pytest", SANITIZED]
        try:
            # Within one large cached block no access would be out of bounds.
            done = subprocess.run(
                [*command, "-q", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False,
                timeout=max(1.0, deadline - time.monotonic()),
                env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"compute-sanitizer {check}: NOT FINISHED in time")
            findings += 1
            continue
        if done.returncode:
            findings += 1
            print("\n".join(f"  {line}" for line in done.stdout.splitlines()[-60:]))
        print(f"compute-sanitizer {check}: {'FAILED' if done.returncode else 'nothing found'}", flush=True)
    return 1 if findings else 0
