"""The suite for a GPU blames the operator whose test fails, and nobody else; planted tests stand for tests/device."""

import os
import time

import pytest
from cmx_fast.benchmarks import device, device_tests

OPERATORS = ["info_nce", "supcon", "kmeans", "attention", "pyramid_correlation"]
PLANTED = """
import os, pytest
spoilt = []

@pytest.mark.parametrize("name", ["info_nce-bank", "supcon", "kmeans-few", "attention"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planted(name, device):
    assert device != "cpu"
    if name == "supcon":
        spoilt.append(name)
    assert not spoilt  # as after an illegal access
"""


def run(folder, monkeypatch, **files):
    tests = folder / "tests" / "device"
    tests.mkdir(parents=True)
    for name, text in files.items():
        (tests / f"{name}.py").write_text(text)
    monkeypatch.setattr(device_tests, "FILES", tuple(files))
    return device_tests.failed_operators(OPERATORS, time.monotonic() + 120, root=folder)


def test_only_the_operator_that_fails_alone_is_blamed(tmp_path, monkeypatch):
    right = "def test_right():\n    pass\n"
    assert run(tmp_path, monkeypatch, test_edges=PLANTED, test_streams=right) == {
        "supcon": ["tests/device/test_edges.py::test_planted[cuda-supcon]"]
    }


def test_a_process_that_dies_is_no_success(tmp_path, monkeypatch):
    died = "import os\n\ndef test_info_nce():\n    pass\n\ndef test_supcon():\n    os._exit(3)\n"
    (failures,) = run(tmp_path, monkeypatch, test_streams=died).items()
    assert failures[0] is None and failures[1][0].startswith("tests/device/test_streams.py died")


def test_what_had_run_before_a_process_ended_counts(tmp_path):
    text = "import os\n\ndef test_kmeans():\n    assert False\n\ndef test_supcon():\n    os._exit(3)\n"
    (tmp_path / "test_planted.py").write_text(text)
    outcomes = device_tests.run_pytest(["test_planted.py"], 120, tmp_path)
    assert outcomes.failed == ["test_planted.py::test_kmeans"] and not outcomes.finished
    assert not device_tests.run_pytest(["test_planted.py"], 0.01, tmp_path).finished


def test_the_files_are_those_of_the_folder():
    there = {path.stem for path in (device.ROOT / "tests" / "device").glob("test_*.py")}
    assert set(device_tests.FILES) == there


@pytest.mark.parametrize(
    ("test", "operator"),
    [
        ("tests/device/test_a.py::test_replays[cuda-info_nce-bank-dtype0]", "info_nce"),
        ("tests/device/test_a.py::test_replays[cuda-pyramid_correlation-consistency]", "pyramid_correlation"),
        ("tests/device/test_a.py::test_gates_pool[cuda]", "gates"),
        ("tests/device/test_a.py::test_waiting_is_found", None),
    ],
)
def test_a_tests_id_names_its_operator(test, operator):
    assert device_tests.operator_of(test, device.tested()) == operator


def test_the_sanitizers_findings_fail(tmp_path, monkeypatch, capsys):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\ntest "$2" != racecheck || exit 9\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert device_tests.sanitize(60) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "compute-sanitizer racecheck: FAILED"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("--tool memcheck --error-exitcode 9") and device_tests.SANITIZED in asked[0]


def test_no_sanitizer_is_said(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert device_tests.sanitize(60) == 2
    assert "compute-sanitizer is not on PATH" in capsys.readouterr().out
