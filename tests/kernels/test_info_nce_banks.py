"""InfoNCE of queries against banks alone, whose mean rows the forward pass keeps, against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
from info_nce_launchers import check, problem, relative, run, truth

from cmx_fast.kernels.info_nce import banks as info_nce_banks
from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

ALONE = {"in_batch": False, "symmetric": False, "cache": True}


@pytest.mark.parametrize(("n", "d"), [(1, 17), (63, 17), (129, 64), (20, 300)])
@pytest.mark.parametrize("banks", [(70,), (70, 1, 129), (0, 5)])
@pytest.mark.parametrize("normalize", [False, True])
def test_sizes(device, n, d, banks, normalize):
    query, key, bank = problem(n, n, d, banks=banks)
    check(device, query, key, 14.3 if normalize else 1.0, bank, normalize=normalize, **ALONE)


def test_samples_and_shared_targets(device):
    query, key, bank = problem(70, 20, 17, batch=2, banks=(9, 200))
    check(device, query, key, 5.0, bank, torch.randint(0, 5, (2, 70)), **ALONE)
    check(device, query[:, :20], key, 5.0, bank, **ALONE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
def test_half_precision(device, dtype, tolerance):
    query, key, bank = problem(63, 63, 40, banks=(20, 300), dtype=dtype)
    check(device, query, key, 14.3, bank, tolerance=tolerance, **ALONE)


@pytest.mark.parametrize("temperature", [0.005, 0.01])
def test_low_temperature(device, temperature):
    """The shift follows the largest logit: what was added up before it must shrink, and nothing overflow."""
    query, key, bank = problem(70, 70, 8, banks=(500,))
    bank[0] = bank[0][
        (query[0, 0] @ bank[0].T).argsort()
    ]  # ascending for one query: every tile moves its shift
    check(device, query, key, 1 / temperature, bank, tolerance=3e-5, **ALONE)


def test_small_gradients_keep_their_digits(device):
    """Loss 0.001: the mean row less the positive is what is left of two nearly equal pulls."""
    key = torch.nn.functional.normalize(torch.randn(1, 64, 32), dim=-1)
    query, bank = (
        key + 0.05 * torch.randn_like(key),
        [torch.nn.functional.normalize(torch.randn(300, 32), dim=-1)],
    )
    arguments = torch.ones(1, 64), query, key, torch.tensor(25.0), bank
    actual = run(device, *arguments, **ALONE)
    expected = truth(*arguments, in_batch=False, symmetric=False)
    assert expected[0].mean() < 1e-3
    assert all(relative(x, y) < 3e-6 for x, y in zip(actual[:3], expected[:3]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_shows(device, value):
    query, key, bank = problem(20, 20, 17, banks=(9,))
    bank[0][5, 2] = value
    actual = run(
        device, torch.ones(1, 20), query.abs(), key, torch.tensor(1.0), bank, normalize=False, **ALONE
    )
    assert actual[0].isnan().all()


def test_an_empty_bank_pushes_nothing(device):
    query, key, bank = problem(20, 20, 17, banks=(0,))
    actual = run(device, torch.ones(1, 20), query, key, torch.tensor(14.3), bank, **ALONE)
    assert all((x == 0).all() for x in actual)


def test_only_what_is_needed_and_the_same_bits_twice(device):
    query, key, bank = problem(129, 129, 17, banks=(70, 300))
    arguments = torch.randn(1, 129), query, key, torch.tensor(14.3), bank
    both = run(device, *arguments, **ALONE)
    assert all(torch.equal(x, y) for x, y in zip(both, run(device, *arguments, **ALONE)))
    for need_query, need_key in ((True, False), (False, True), (False, False)):
        _, dquery, dkey, dscale = run(device, *arguments, need_query=need_query, need_key=need_key, **ALONE)
        assert torch.equal(dquery, both[1]) if need_query else dquery.shape == (0,)
        assert torch.equal(dkey, both[2]) if need_key else dkey.shape == (0,)
        assert torch.equal(dscale, both[3])


def test_the_backward_pass_reads_no_bank(device):
    """The mean rows are what was kept, and nothing else of a bank is looked at again."""
    query, key, bank = problem(40, 40, 17, banks=(70,))
    on_device = [x.to(device) for x in (query, key, torch.tensor(1.0))]
    options = False, False, "dot", False, False, 0.0
    _, *saved = info_nce_fwd(*on_device, [bank[0].to(device)], None, *options, True)
    softmax = (query[0].double() @ bank[0].double().T).softmax(1)
    assert relative(saved[2][0].cpu(), softmax @ bank[0].double()) < 3e-6
    gone = [torch.full_like(bank[0], math.nan).to(device)]
    dquery = info_nce_bwd(
        torch.ones(1, 40, device=device), *on_device, gone, None, *options, *saved, True, False
    )[0]
    alone = {"in_batch": False, "symmetric": False, "normalize": False}
    expected = truth(torch.ones(1, 40), query, key, torch.tensor(1.0), bank, **alone)
    assert relative(dquery.cpu(), expected[1]) < 3e-6


def test_wide_rows_in_parts(device):
    """More output than a program holds: the statistics come from one part alone."""
    assert info_nce_banks.choose_tile(info_nce_banks.GRADIENT_TILES, "sm80", torch.float32, 300).out < 300
    query, key, bank = problem(10, 10, 300, banks=(130,))
    check(device, query, key, 14.3, bank, **ALONE)
