"""Every operator and what its users run today, forward and backward at small sizes (``pytest benchmarks/``)."""

from __future__ import annotations

import pytest
import torch

from .harness import gate, timing
from .harness.case import Case
from .harness.measure import UNIT, result_error
from .harness.registry import CASES

THREADS = 2
ROWS = 512
# The largest error that a contender may have, where it is not LARGEST_ERROR.
LARGEST_ERRORS = {
    "band_spectrogram": 1e-3,
    "prepare_frames": 0.1,  # of torchvision, which rounds after every step
    "pyramid_correlation": 1e-4,
}
LARGEST_ERROR = 0.05

SMALL_CASES = dict.fromkeys(case.resized(ROWS) for case in CASES if "time" in case.measures)
CONTENDERS = [
    pytest.param(case, name, id=f"{case.operator}-{case.name}-{name}")
    for case in SMALL_CASES
    for name in case.providers
]


@pytest.fixture(scope="session")
def verdicts() -> dict[str, gate.Verdict]:
    """The short check of each operator that was benchmarked so far."""
    torch.set_num_threads(THREADS)
    return {}


@pytest.mark.parametrize(("case", "provider"), CONTENDERS)
def test_operator(benchmark, verdicts: dict[str, gate.Verdict], case: Case, provider: str):
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
    except ImportError as missing:
        pytest.skip(str(missing))
    benchmark.group = case.title
    error = result_error(case, contenders[provider])
    benchmark.extra_info |= {
        "unit_ms": 1e3 * timings[UNIT].median,
        "units": timing.ratio(timings[provider], timings[UNIT]),
        f"times faster than {case.providers[0]}": timing.ratio(timings[case.providers[0]], timings[provider]),
        "error": error,
    }
    benchmark.pedantic(steps[provider], rounds=5, warmup_rounds=1)
    assert error < LARGEST_ERRORS.get(case.operator, LARGEST_ERROR)
