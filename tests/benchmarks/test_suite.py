"""The GPU suite's way through its cases, with a stand-in for what measures."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmx_fast.benchmarks.device import kernel_tests, machine_rates, roofline, suite
from cmx_fast.benchmarks.device.roofline import Chip
from cmx_fast.benchmarks.harness import gate, measure, report
from cmx_fast.benchmarks.harness.provider import OURS

ROOT = Path(__file__).resolve().parents[2]
HERE = Chip("here", 7e14, 5e13, 4e12, 1, 1)


@pytest.fixture
def run_suite(monkeypatch, tmp_path):
    """Runs the suite with arguments on a pretended GPU; gives its exit status, the cases measured and the results."""

    def run(gpu, *arguments, wrong=(), failed=None):
        seen = {}

        def pretended(case, *, seconds, device):
            seen[case.name] = case
            goals = [
                measure._judge(goal, {OURS: {"ms": 1.0}}, {}, 0.0) for goal in case.goals if goal.kind == "ms"
            ]
            record = {"title": case.title, "operator": case.operator, "dtype": "bfloat16", "shape": {}}
            return record | {"providers": {OURS: {"ms": 1.0}}, "goals": goals}

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(suite, "install_if_missing", lambda: None)
        monkeypatch.setattr(kernel_tests, "failed_operators", lambda *_, **__: failed or {})
        monkeypatch.setattr(
            gate, "check", lambda case, _: gate.Verdict(case.name not in wrong, f"{case.name} is wrong")
        )
        monkeypatch.setattr(machine_rates, "measured", lambda _: HERE)
        monkeypatch.setattr(measure, "measure", pretended)
        monkeypatch.setattr(sys, "argv", ["device", "--out", str(tmp_path), *arguments])
        status = suite.main()
        (path,) = tmp_path.glob("*.json")
        return status, seen, report.load(path)

    return run


def test_floors_keep_their_goals_on_the_chip_that_they_are_of(run_suite, capsys):
    status, seen, document = run_suite("NVIDIA H200", "--only", "floors/info_nce-3", "gates/device-CBAM-7")
    output = capsys.readouterr().out
    assert status == 0 and set(seen) == {"floors/info_nce-32768x512", "gates/device-CBAM-7"}
    assert seen["floors/info_nce-32768x512"].goals and not seen["gates/device-CBAM-7"].goals
    assert document["machine"]["ceilings"] == {"bfloat16": 7e14, "float32": 5e13, "copy": 4e12}
    assert "at most 7.5 (reach 5.57) ms: 1, reached" in output
    floor = seen["floors/info_nce-32768x512"]
    assert (
        roofline.beside(floor, "NVIDIA H200", HERE, 1.0) in output and "at the rates of this run: " in output
    )


def test_another_chip_is_asked_nothing(run_suite, capsys):
    _, seen, _ = run_suite("NVIDIA A100", "--only", "floors/supcon")
    assert not seen["floors/supcon-16384x128"].goals
    assert "limit of A100" in capsys.readouterr().out


def test_floors_are_measured_first(run_suite, capsys):
    _, seen, _ = run_suite("NVIDIA H200")
    first = list(seen)[:3]
    assert first == ["floors/info_nce-65536x768", "floors/info_nce-32768x512", "floors/supcon-16384x128"]
    assert ": failed" not in capsys.readouterr().out


def test_what_is_wrong_gets_no_figure_and_the_others_go_on(run_suite, capsys):
    status, seen, document = run_suite(
        "NVIDIA H200",
        *("--only", "floors/supcon", "gates/device-CBAM", "kmeans/device"),
        wrong=["gates/device-CBAM-56"],
        failed={"kmeans": ["tests/kernels/test_kmeans.py::test_one"], None: ["a file died"]},
    )
    output = capsys.readouterr().out
    assert status == 1
    assert set(seen) == set(document["cases"]) == {"floors/supcon-16384x128", "gates/device-CBAM-7"}
    assert "kmeans: NOT REPORTED, tests/kernels/test_kmeans.py::test_one" in output
    assert "gates/device-CBAM-56: failed, NOT REPORTED: gates/device-CBAM-56 is wrong" in output
    assert "the suite itself: FAILED, a file died" in output


@pytest.fixture
def without_package(monkeypatch, tmp_path):
    """A tree in which nothing is built, and the commands that the suite starts there."""
    started = []
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(suite.subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.setattr(suite.os, "execv", lambda *command: started.append(command))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(suite.os, "environ", dict(os.environ))
    return started


def test_it_builds_for_its_own_gpu_and_starts_anew(without_package, capsys):
    suite.install_if_missing()
    install, anew = without_package
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == str(suite.ROOT)
    assert anew == (sys.executable, sys.orig_argv)
    assert suite.os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"pip installed cmx_fast, but .*_C.abi3.so is missing"):
        suite.install_if_missing()  # in the new interpreter


def test_it_installs_nothing_where_the_package_is_built(monkeypatch):
    monkeypatch.setattr(suite.subprocess, "run", lambda *_, **__: pytest.fail("installed"))
    suite.install_if_missing()


def test_it_needs_torch_triton_and_pytest_alone():
    """A machine without a registry has no more: neither the suite nor the tests that it runs may miss anything."""
    modules = [
        "device.suite", "device.kernel_tests", "device.machine_rates", "device.roofline", "device.limit_cases",
        "harness.gate", "harness.machine", "harness.report", "harness.measure", "harness.registry",
    ]  # fmt: skip
    imports = "; ".join(f"import benchmarks.{module}" for module in modules)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'tests' / 'support'}:{ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    run = functools.partial(
        subprocess.run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    done = run([sys.executable, "-c", f"import bare_machine; {imports}"])
    assert done.returncode == 0, done.stderr
    folder = [f"{kernel_tests.FOLDER}/{file}.py" for file in (*kernel_tests.FILES, kernel_tests.LARGE)]
    collect = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "bare_machine",
        "--collect-only",
        "-qq",
        "-p",
        "no:cacheprovider",
    ]
    done = run([*collect, *kernel_tests.kernel_files(), *folder])
    assert done.returncode == 0, done.stdout
