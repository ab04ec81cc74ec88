"""The suite for a GPU: ``python -m benchmarks.device --out DIR``.

Builds what is missing, runs the kernels' tests on the device and those of tests/device (graphs, streams, memory), then
measures, most important case first, and stops in time with the results so far. Needs torch, triton, pytest and a C++
compiler; with pytest-xdist the tests run side by side, without it they take some ten minutes more. Results go to
``<out>/<gpu>.json`` after every case. An operator whose tests fail gets no figure. ``--only floors`` measures the cases
that are held against an H200's limits; ``--sanitize`` instead runs every kernel once under compute-sanitizer.

Packages to compare with are named where they are not installed. A machine without a registry gets them from a folder:
``pip download --no-deps -d DIR -r benchmarks/peers/wheels.txt`` elsewhere, then ``--wheels DIR``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_CASE = 4.0
TESTS_SHARE = 0.6  # of the whole time, at most
SLOWEST_CASE = 30.0  # seconds that another case may take: compilation and the eager formula at its largest


#: Set in the interpreter that starts after an installation.
INSTALLED = "CMX_DEVICE_INSTALLED"


def install_if_missing() -> None:
    """Install the package in place where its kernels or operators are missing, built for this machine's GPU alone.

    An interpreter reads pip's files of paths when it starts, and finds no package that it installs itself: this one
    starts anew.

    Raises:
        RuntimeError: what was installed is not there.
    """
    # Not cmx_fast.kernels: to look for it imports cmx_fast, which may be the source tree without its operators.
    if importlib.util.find_spec("cmx_fast") and (ROOT / "cmx_fast" / "_C.abi3.so").is_file():
        return
    if INSTALLED in os.environ:
        raise RuntimeError(
            f"benchmarks.device: pip installed cmx_fast, but {ROOT / 'cmx_fast' / '_C.abi3.so'} is missing"
        )
    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    print(f"benchmarks.device: building cmx_fast for {os.environ['TORCH_CUDA_ARCH_LIST']}", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-e",
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    os.environ[INSTALLED] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def install_wheels(folder: Path) -> None:
    """Install the wheels of this folder as they are: nothing is downloaded, and their dependencies are left out.

    Raises:
        ValueError: the folder has no wheel.
    """
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        raise ValueError(
            f"--wheels {folder} has no *.whl; benchmarks/peers/wheels.txt says what belongs there"
        )
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *wheels]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Test and measure the GPU kernels on this machine's GPU.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results"
    )
    parser.add_argument("--only", nargs="*", default=[], help="operators or the beginnings of case names")
    parser.add_argument("--wheels", type=Path, help="folder with packages to compare with, to install first")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit for everything")
    parser.add_argument("--sanitize", action="store_true", help="only the kernels under compute-sanitizer")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    if not torch.cuda.is_available():
        print("benchmarks.device: this machine has no CUDA device (or a CPU build of torch); nothing was run")
        return 2
    install_if_missing()
    if arguments.wheels is not None:
        install_wheels(arguments.wheels)
    # After the installation: these import cmx_fast.
    from cmx_fast.ops._implementations import COMPILED_FOR_CUDA

    from ..harness import gate, machine, report
    from ..harness.measure import measure
    from ..harness.provider import OURS
    from ..harness.registry import DEVICE_CASES, select
    from . import kernel_tests, machine_rates, roofline
    from .limit_cases import LIMIT_CASES

    if arguments.sanitize:
        return kernel_tests.sanitize(deadline - time.monotonic())
    about = machine.describe("cuda")
    print(machine.header(about))
    print(
        f"CUDA C++ kernels: {', '.join(sorted(COMPILED_FOR_CUDA)) or 'not built, so neither tested nor measured'}"
    )
    here = machine_rates.measured("cuda")
    about["ceilings"] = {"bfloat16": here.bfloat16, "float32": here.float32, "copy": here.memory}
    print(machine_rates.describe(here), flush=True)
    # The other cases' goals are for a CPU.
    held_to_limits = {case.name for case in LIMIT_CASES if "H200" in about["gpu"]}
    cases = select(arguments.only, DEVICE_CASES)
    measured = list(dict.fromkeys(case.operator for case in cases))
    # Operators that no case measures come last.
    tested = kernel_tests.tested()
    others = [name for name in tested if name not in measured and name in (arguments.only or [name])]
    until = time.monotonic() + TESTS_SHARE * (deadline - time.monotonic())
    failed = kernel_tests.failed_operators(measured + others, until, only=bool(arguments.only))
    failures = 0
    for operator in failed.keys() - {*measured, *others}:
        print(f"{operator or 'the suite itself'}: FAILED, {'; '.join(failed[operator])}", flush=True)
        failures += 1
    for operator in measured + others:
        passed = operator not in failed
        failures += not passed
        line = "tests pass" if passed else f"NOT REPORTED, {'; '.join(failed[operator])}"
        print(f"{operator}: {line}", flush=True)
    for number, case in enumerate(cases):
        if time.monotonic() + SLOWEST_CASE > deadline:
            print(f"time is up: {len(cases) - number} of {len(cases)} cases not measured")
            break
        if case.operator in failed:
            continue
        try:
            if "time" in case.measures and not (verdict := gate.check(case, "cuda")).passed:
                raise RuntimeError(verdict.reason)
            judged = case if case.name in held_to_limits else replace(case, goals=())
            record = measure(judged, seconds=SECONDS_PER_CASE, device="cuda")
        except Exception as error:  # a kernel that doesn't compile, or one that is wrong; the others go on
            print(f"{case.name}: failed, NOT REPORTED: {error}", flush=True)
            failures += 1
            torch.cuda.empty_cache()
            continue
        print(f"\n{report.table(record)}", flush=True)
        ours = record["providers"].get(OURS, {}).get("ms")
        print(roofline.beside(case, about["gpu"], here, ours), flush=True)
        report.save(arguments.out, about, {case.name: record})
    path = arguments.out / f"{about['name']}.json"
    if path.exists() and importlib.util.find_spec("matplotlib"):
        report.plot(report.load(path), path.with_suffix(".png"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
