import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cmx_fast import reference
from cmx_fast.ops import linear_assignment
from cmx_fast.ops.linear_assignment import HAS_SOLVER


def assert_as_cheap_as_scipy(cost, maximize=False):
    rows, columns = linear_assignment(cost, maximize=maximize)
    for item, row, column in zip(cost.double().numpy(), rows.numpy(), columns.numpy()):
        expected = linear_sum_assignment(item, maximize)
        assert row.tolist() == sorted(set(row.tolist()))
        assert len(set(column.tolist())) == len(expected[0]) == len(row)
        assert item[row, column].sum() == pytest.approx(item[expected].sum(), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (6, 6), (27, 27), (4, 9), (9, 4), (1, 7), (7, 1), (60, 61)]
)
def test_total_is_scipys(rows, columns, maximize):
    assert_as_cheap_as_scipy(torch.randn(20, rows, columns), maximize)
    assert_as_cheap_as_scipy(1e9 * torch.randn(5, rows, columns).double(), maximize)
    assert_as_cheap_as_scipy(torch.randint(-3, 3, (20, rows, columns)), maximize)  # many ties
    assert_as_cheap_as_scipy(torch.full((3, rows, columns), -2.5), maximize)
    assert_as_cheap_as_scipy(torch.zeros(1, rows, columns), maximize)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_forbidden_pairs_are_avoided_or_refused_as_scipy_does(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(1, rows, columns, generator=generator).double()
    cost[torch.rand(cost.shape, generator=generator) < 0.4] = torch.inf
    try:
        linear_sum_assignment(cost[0].numpy())
    except ValueError:
        with pytest.raises(ValueError, match=r"1 of 1 cost matrices leave no assignment .* \[0\]"):
            linear_assignment(cost)
    else:
        assert_as_cheap_as_scipy(cost)


def test_without_a_batch_and_of_nothing():
    cost = torch.randn(5, 8)
    single, batch = linear_assignment(cost), linear_assignment(cost[None])
    assert all(one.equal(many[0]) for one, many in zip(single, batch))
    for shape in ((0, 4, 4), (3, 0, 4), (3, 4, 0)):
        rows, columns = linear_assignment(torch.empty(shape))
        assert rows.shape == columns.shape == (shape[0], min(shape[1:]))


def test_reference_solves_the_same():
    cost = torch.randint(0, 50, (30, 7, 9)).double()
    for costs in (cost, cost.transpose(1, 2).contiguous()):
        rows, columns, solved = reference.linear_assignment(costs.numpy())
        assert solved.all()
        ours = linear_assignment(costs)
        index = np.arange(30)[:, None]
        actual = costs.numpy()[index, rows, columns].sum(1)
        assert actual.tolist() == costs[torch.from_numpy(index), ours[0], ours[1]].sum(1).tolist()
    assert not reference.linear_assignment(np.full((1, 2, 2), np.inf))[2].any()


@pytest.mark.skipif(not HAS_SOLVER, reason="the C++ solver is not built (CMX_NO_EXTENSION)")
def test_runs_without_the_interpreters_lock():
    cost = torch.rand(1, 700, 700)
    ticks, done = 0, threading.Event()

    def solve():
        linear_assignment(cost)
        done.set()

    worker = threading.Thread(target=solve)
    worker.start()
    while not done.is_set():
        time.sleep(1e-3)
        ticks += 1
    worker.join()
    assert ticks > 5


@pytest.mark.parametrize(
    ("cost", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "cost must be a tensor"),
        (torch.ones(3), {}, ValueError, r"cost must have shape \(R, C\) or \(B, R, C\), got \(3,\)"),
        (torch.ones(2, 2, dtype=torch.complex64), {}, TypeError, "real numbers"),
        (
            torch.tensor([[[1.0]], [[torch.nan]]]),
            {},
            ValueError,
            r"NaN or -inf in 1 of 2 matrices; the first are \[1\]",
        ),
        (torch.tensor([[-torch.inf]]), {}, ValueError, "NaN or -inf in 1 of 1"),
        (torch.tensor([[torch.inf]]), {"maximize": True}, ValueError, r"NaN or \+inf in 1 of 1"),
    ],
)
def test_refuses(cost, options, error, message):
    with pytest.raises(error, match=message):
        linear_assignment(cost, **options)
