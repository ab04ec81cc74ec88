import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch

from cmx_fast.benchmarks.harness import gate, machine, memory, report, timing
from cmx_fast.benchmarks.harness.case import PROVIDERS, Goal
from cmx_fast.benchmarks.harness.measure import measure, result_error
from cmx_fast.benchmarks.harness.provider import OURS, Provider
from cmx_fast.benchmarks.harness.registry import CASES, DEVICE_CASES, select

SMALL = {case.name: case.resized(64) for case in CASES}


def test_contenders_are_timed_in_turn():
    order = []
    steps = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timing.interleaved(steps, seconds=0, rounds=(3, 3), clock=lambda step, number: step() or 1.0)
    assert "".join(order) == "aabb" + "ab" * 3  # two untimed runs each, then in turn


def test_ratio_is_of_neighbouring_samples():
    # The machine slows down fourfold half way: ratios of medians would say 2.5, neighbours say 2.
    fast, slow = timing.Timing((1.0, 1.0, 4.0, 4.0, 4.0)), timing.Timing((2.0, 2.0, 8.0, 8.0, 8.0))
    assert timing.ratio(slow, fast) == 2
    assert slow.median == 8


def test_a_sleep_takes_as_long_as_it_says():
    result = timing.interleaved({"sleep": lambda: time.sleep(0.02)}, seconds=0, rounds=(3, 3))["sleep"]
    assert 0.02 <= result.median < 0.1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_meter_sees_a_known_allocation():
    size = 64 * memory.MB

    def step():
        return torch.ones(size // 4).sum()

    step()
    try:
        assert memory.extra_peak(step) == pytest.approx(size, rel=0.1)
    except memory.MemoryMeterError as error:
        pytest.skip(str(error))


def test_error_is_against_float64_and_finds_a_wrong_gradient():
    case = SMALL["info_nce/symmetric"]
    right = PROVIDERS["clip"][OURS]
    assert result_error(case, right) < 1e-5
    wrong = dataclasses.replace(right, bind=lambda p: lambda: 1.01 * right.bind(p)())
    assert result_error(case, wrong) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(
    "case", {(case.task, case.providers): case for case in CASES}.values(), ids=lambda c: c.name
)
def test_every_contender_of_a_cpu_runs_there(case):
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    for name, provider in case.resized(64).contenders().items():
        if provider.compiled or provider.package not in (None, *installed):
            continue
        assert math.isfinite(result_error(case.resized(64), provider)), name


def test_gate_refuses_an_operator_that_computes_the_wrong_thing(monkeypatch):
    assert gate.short_check("supcon").passed
    right = PROVIDERS["supcon"][OURS]
    broken = Provider(lambda p: lambda: 2 * right.bind(p)(), right.truth)
    monkeypatch.setitem(PROVIDERS["supcon"], OURS, broken)
    verdict = gate.short_check("supcon")
    assert not verdict.passed and "has an error of" in verdict.reason


def test_goals_are_judged_in_their_own_direction():
    assert Goal("speedup", 2, 4).met(2.1) and not Goal("speedup", 2, 4).met(1.9)
    assert Goal("peak_mb", 200, 60).met(150) and not Goal("peak_mb", 200, 60).met(250)


def test_records_survive_the_file_and_later_measurements(tmp_path):
    case = dataclasses.replace(
        SMALL["supcon/labels"], measures=("time", "error"), providers=("SupContrast's formula", OURS)
    )
    record = measure(case, seconds=0.05)
    assert record["providers"][OURS]["units"] > 0
    assert any(path.startswith("csrc/cpu/") for path in record["sources"])
    about = machine.describe()
    report.save(tmp_path, about, {"supcon/labels": record})
    path = report.save(tmp_path, about, {"info_nce/symmetric": record})
    document = report.load(path)
    assert set(document["cases"]) == {"supcon/labels", "info_nce/symmetric"}
    assert json.loads(json.dumps(record)) == document["cases"]["supcon/labels"]
    assert max(map(len, report.table(record).splitlines())) <= report.WIDTH
    report.plot(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a results file"):
        report.load(path)


def test_unknown_names_are_listed():
    assert select(["supcon"])
    assert select(["frames"]) == select(["prepare_frames"])
    with pytest.raises(ValueError, match="no benchmark is called 'supkon'; there are info_nce/symmetric"):
        select(["supkon"])
    # The encoding layer has no kernel of its own.
    assert {case.operator for case in DEVICE_CASES} == {case.operator for case in CASES} - {"encoding"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_suite_says_that_there_is_no_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no CUDA device" in done.stdout


def test_the_hosts_share_is_that_of_every_launch():
    """Runs in a process without the interpreter, in which nothing is compiled or launched."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "cmx_fast.benchmarks.device.host"],
        capture_output=True,
        text=True,
        env=environment,
    )
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [(name, launches) for name, launches, _ in rows] == [("info_nce", "4"), ("supcon", "4")], (
        done.stderr
    )
    assert all(0 < float(microseconds) < 1e5 for *_, microseconds in rows)
