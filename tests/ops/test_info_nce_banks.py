"""InfoNCE against memory banks."""

import math

import pytest
import torch
import torch.nn.functional as F
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import info_nce

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "info_nce_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def from_banks(banks, **options):
    """The loss of queries that only banks push away."""

    def loss(query, key, scale, impl="cpp"):
        return info_nce(
            query, key, scale, bank=[rows.to(query.dtype) for rows in banks], in_batch=False, symmetric=False,
            reduction="none", impl=impl, **options,
        )  # fmt: skip

    return loss


@pytest.mark.parametrize("scale", [1 / 0.07, 1 / 0.005])
@pytest.mark.parametrize(
    ("n", "sizes"), [(1, (5000,)), (130, (3000, 4501)), (40, (0, 1)), (5, (1440, 1441, 0))]
)
def test_mean_of_the_banks_rows_is_all_that_the_gradient_needs(n, sizes, scale):
    banks, d = [unit_rows(k, 20).double() for k in sizes], 20
    inputs = [unit_rows(n, d).double(), unit_rows(n, d).double(), torch.tensor(scale).double()]
    actual, truth = (
        run(lambda *x, impl=impl: from_banks(banks)(*x, impl), *inputs) for impl in ("cpp", "reference")
    )
    frozen = from_banks(banks)(*(x.detach() for x in inputs))
    assert frozen.allclose(actual[0], rtol=1e-13)  # without gradients the sums alone are made
    for f, t in zip(actual, truth):
        assert vector_error(f, t) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positive", [0.1, 0.95])
def test_error_against_banks_is_at_most_eagers(dtype, positive):
    query, noise = unit_rows(130, 64), unit_rows(130, 64)
    key, banks = (
        F.normalize(positive * query + (1 - positive) * noise, dim=1),
        [unit_rows(k, 64) for k in (3000, 1700)],
    )
    banks = [rows.to(dtype) for rows in banks]
    assert_as_exact_as_eager(from_banks(banks), [query, key, torch.tensor(1 / 0.07)], dtype)


def test_banks_give_the_same_bits_for_any_number_of_threads():
    banks, inputs = [unit_rows(9000, 64)], [unit_rows(130, 64), unit_rows(130, 64), torch.tensor(14.0)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(from_banks(banks), *inputs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(actual.equal(first) for actual, first in zip(result, results[0]))


def test_bank_in_two_parts_is_the_bank_in_one():
    query, key, bank = unit_rows(20, 8), unit_rows(20, 8), unit_rows(700, 8)
    whole = run(
        lambda q, k: info_nce(q, k, bank=bank, in_batch=False, symmetric=False, impl="cpp"), query, key
    )
    parts = (bank[:331], bank[331:], bank[:0])
    split = run(
        lambda q, k: info_nce(q, k, bank=parts, in_batch=False, symmetric=False, impl="cpp"), query, key
    )
    for a, b in zip(whole, split):
        assert vector_error(a, b) < 1e-6


def test_two_banks_of_15000_orthogonal_rows_start_at_ln_30001():
    query, key, bank = torch.zeros(4, 16), torch.zeros(4, 16), torch.zeros(15000, 16)
    query[:, 0] = key[:, 1] = bank[:, 2] = 1
    loss = info_nce(query, key, bank=(bank, bank), in_batch=False, symmetric=False, impl="cpp")
    assert loss.item() == pytest.approx(math.log(30001), rel=1e-6)


def test_a_transposed_bank():
    # MoCo's queue is (D, K). A copy in row order that lived too short was read after it was gone.
    queue = torch.randn(300, 4000)
    query, key = torch.randn(2, 64, 300)
    options = {"in_batch": False, "symmetric": False}
    for _ in range(3):
        actual = info_nce(query, key, 0.5, bank=queue.T, **options)
        assert actual.equal(info_nce(query, key, 0.5, bank=queue.T.contiguous(), **options))
