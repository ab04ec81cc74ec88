"""pytest-benchmark: small cases, each beside U, its baseline and float64."""

from __future__ import annotations

import pytest
import torch

from .harness import gate, machine, timing
from .harness.case import Case
from .harness.measure import UNIT, result_error
from .harness.registry import CASES

THREADS = 2
ROWS = 512


def pytest_report_header() -> str:
    return machine.header(machine.describe())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every provider of every timed case of the operator that the module is named after."""
    if "provider" not in metafunc.fixturenames:
        return
    operator = metafunc.module.__name__.rpartition("bench_")[2]
    cases = [case.resized(ROWS) for case in CASES if case.operator == operator and "time" in case.measures]
    pairs = [(case, name) for case in dict.fromkeys(cases) for name in case.providers]
    metafunc.parametrize(("case", "provider"), pairs, ids=[f"{case.name}-{name}" for case, name in pairs])


@pytest.fixture(scope="session")
def verdicts() -> dict[str, gate.Verdict]:
    torch.set_num_threads(THREADS)
    return {}


@pytest.fixture
def measured(benchmark, verdicts, case: Case, provider: str):
    """Benchmark one provider, unless its operator computes the wrong thing."""
    if case.operator not in verdicts:
        verdicts[case.operator] = gate.short_check(case.operator)
    if not verdicts[case.operator].passed:
        pytest.fail(f"not reported: {verdicts[case.operator].reason}")
    contenders = case.contenders()
    names = dict.fromkeys([case.providers[0], provider])
    steps = {name: contenders[name].step(case.problem(contenders[name])) for name in names}
    try:
        timings = timing.interleaved({UNIT: case.unit(), **steps}, seconds=0.2)
    except ImportError as error:
        pytest.skip(str(error))
    benchmark.group = case.title
    benchmark.extra_info |= {
        "unit_ms": 1e3 * timings[UNIT].median,
        "units": timing.ratio(timings[provider], timings[UNIT]),
        f"times faster than {case.providers[0]}": timing.ratio(timings[case.providers[0]], timings[provider]),
        "error": result_error(case, contenders[provider]),
    }
    benchmark.pedantic(steps[provider], rounds=5, warmup_rounds=1)
    return benchmark
