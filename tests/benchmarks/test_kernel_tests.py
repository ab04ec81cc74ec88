"""The suite for a GPU blames the operator whose test fails, and nobody else; planted tests stand for tests/device."""

import os
import time

import pytest

from cmx_fast.benchmarks.device import kernel_tests, suite

OPERATORS = ["info_nce", "supcon", "kmeans", "attention", "pyramid_correlation"]
ONE_OR_MORE = pytest.mark.parametrize(
    "failed", [1, 3], indirect=True, ids=["one after the other", "side by side"]
)
RIGHT = "def test_right():\n    pass\n"
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


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch):
    """The planted tests need pytest-xdist alone, and every process would import the others first."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p xdist")


def plant(root, **files):
    """Test files by their paths, a double underscore for a slash."""
    for name, text in files.items():
        path = root / "tests" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def failed(request, tmp_path, monkeypatch):
    """The suite over planted files, in two processes or as many as a test asks for."""
    monkeypatch.setattr(kernel_tests, "workers", lambda: getattr(request, "param", 2))

    def run(seconds=120.0, **files):
        plant(tmp_path, **{"device__test_large": RIGHT, **files})
        there = tuple(path.stem for path in (tmp_path / "tests/device").glob("test_*.py"))
        monkeypatch.setattr(kernel_tests, "FILES", tuple(set(there) - {kernel_tests.LARGE}))
        return kernel_tests.failed_operators(OPERATORS, time.monotonic() + seconds, root=tmp_path)

    return run


@ONE_OR_MORE
def test_only_the_operator_that_fails_alone_is_blamed(failed):
    assert failed(device__test_edges=PLANTED, device__test_streams=RIGHT) == {
        "supcon": ["tests/device/test_edges.py::test_planted[cuda-supcon]"]
    }


def test_a_kernels_tests_count_for_its_operator_whatever_they_are_called(failed):
    assert failed(kernels__test_info_nce_banks="def test_supcon():\n    assert False\n") == {
        "info_nce": ["tests/kernels/test_info_nce_banks.py::test_supcon"]
    }


@ONE_OR_MORE
def test_names_with_spaces_are_read(failed):
    marked = "import pytest\n\n@pytest.mark.parametrize('x', [1], ids=['a PASSED b'])\n"
    text = marked + "def test_one(x):\n    assert x > 1\n"
    assert failed(kernels__test_kmeans=text) == {
        "kmeans": ["tests/kernels/test_kmeans.py::test_one[a PASSED b]"]
    }


@ONE_OR_MORE
def test_a_process_that_dies_is_no_success(failed):
    """The tests of kernels that it leaves are blamed on their operators."""
    died = "import os\n\ndef test_a():\n    pass\n\ndef test_b():\n    os._exit(3)\n"
    failures = failed(kernels__test_kmeans=died)
    assert "tests/kernels/test_kmeans.py::test_b" in failures["kmeans"][0]
    assert not any("test_a" in test for test in failures["kmeans"])


def test_what_has_no_result_in_time_is_no_success(failed):
    slow = "import time\n\ndef test_slow():\n    time.sleep(600)\n"
    start = time.monotonic()
    failures = failed(15, kernels__test_supcon=RIGHT + slow)
    assert time.monotonic() - start < 60
    assert failures["supcon"] == ["tests/kernels/test_supcon.py::test_slow (no result)"]
    assert len(failures[None]) == 2  # this file and those that nothing was left for


def test_what_had_run_before_a_process_ended_counts(tmp_path):
    plant(
        tmp_path,
        test_planted="import os\n\ndef test_kmeans():\n    assert False\n\ndef test_supcon():\n    os._exit(3)\n",
    )
    outcomes = kernel_tests.run_pytest(["tests/test_planted.py"], 120, tmp_path)
    assert outcomes.failed == ["tests/test_planted.py::test_kmeans"] and not outcomes.finished
    assert not kernel_tests.run_pytest(["tests/test_planted.py"], 0.01, tmp_path).finished


def test_the_files_are_those_of_the_folder():
    there = {path.stem for path in (suite.ROOT / "tests" / "device").glob("test_*.py")}
    assert {*kernel_tests.FILES, kernel_tests.LARGE} == there


def test_an_operator_has_all_the_files_that_begin_with_its_name():
    tested, files = kernel_tests.tested(), kernel_tests.kernel_files()
    assert "info_nce" in tested and "tests/kernels/test_info_nce_banks.py" in files
    assert not {"info_nce_banks", "launches", "operators", "compile"} & set(tested)


@pytest.mark.parametrize(
    ("test", "operator"),
    [
        ("tests/device/test_a.py::test_replays[cuda-info_nce-bank-dtype0]", "info_nce"),
        ("tests/device/test_a.py::test_replays[cuda-pyramid_correlation-consistency]", "pyramid_correlation"),
        ("tests/device/test_a.py::test_gates_pool[cuda]", "gates"),
        ("tests/device/test_a.py::test_waiting_is_found", None),
        ("tests/kernels/test_info_nce_chunks.py::test_supcon", "info_nce"),
        ("tests/kernels/test_launches.py::test_launches[kmeans.<locals>.call-2]", "kmeans"),
    ],
)
def test_a_tests_id_names_its_operator(test, operator):
    assert kernel_tests.operator_of(test, kernel_tests.tested()) == operator


def test_the_sanitizers_findings_fail(tmp_path, monkeypatch, capsys):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\ntest "$2" != racecheck || exit 9\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert kernel_tests.sanitize(60) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "compute-sanitizer racecheck: FAILED"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("--tool memcheck --error-exitcode 9") and kernel_tests.SANITIZED in asked[0]


def test_no_sanitizer_is_said(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert kernel_tests.sanitize(60) == 2
    assert "compute-sanitizer is not on PATH" in capsys.readouterr().out
