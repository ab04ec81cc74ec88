"""Logits of any size, up to where the dtype's range ends: what float64 gives, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import held_back_to, printed_by
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import block_statistics, cluster_cross_entropy, info_nce, supcon

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "supcon_fwd"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)
SCALES = (1e5, 1e7, 3e8, 1e12, 1e20, 1e30, 1e36)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_info_nce_of_unit_rows(scale, symmetric):
    x = F.normalize(torch.randn(64, 32), dim=1)
    truth = run(
        lambda x: info_nce(x, x.roll(1, 0), scale, symmetric=symmetric, reduction="none", impl="reference"),
        x.double(),
    )
    actual = run(
        lambda x: info_nce(x, x.roll(1, 0), scale, symmetric=symmetric, reduction="none", impl="cpp"), x
    )
    assert vector_error(actual[0], truth[0]) < 3e-7
    assert vector_error(actual[1], truth[1]) < 3e-5  # near 1e5 a rounding of a logit is a hundredth


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_supcon_of_unit_rows(scale, dtype):
    x, labels = F.normalize(torch.randn(64, 32), dim=1).to(dtype), torch.arange(64) // 3
    actual, truth = (
        run(lambda x, impl=impl: supcon(x, labels, scale, reduction="none", impl=impl), rows)
        for impl, rows in (("cpp", x), ("reference", x.double()))
    )
    assert vector_error(actual[0], truth[0]) < 3e-7
    assert vector_error(actual[1], truth[1]) < (3e-5 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("similarity", ["dot", "l2", "sql2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_raw_pixels_at_scale_one(similarity, dtype):
    assert_as_exact_as_eager(
        lambda x, impl: info_nce(x, x.roll(1, 0), 1.0, similarity=similarity, reduction="none", impl=impl),
        [torch.randint(0, 256, (32, 3000)).float()],
        dtype,
    )


@pytest.mark.parametrize("scale", [1e3, 2.0**40, 2.0**100])
def test_equal_candidates_share_the_softmax(scale):
    # The positive and two negatives are one vector: log 3, whatever its logit.
    query, key = torch.ones(4, 8), torch.ones(4, 8)
    key[3] = -1
    target = torch.tensor([0, 1, 2, 0])
    for impl in ("cpp", "reference"):
        losses = info_nce(query, key, scale, target=target, symmetric=False, reduction="none", impl=impl)
        torch.testing.assert_close(losses, torch.full((4,), 3.0).log())
        losses = supcon(query, torch.zeros(4).long(), scale, reduction="none", impl=impl)
        torch.testing.assert_close(losses, torch.full((4,), 3.0).log())


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_supcons_gradients_of_equal_rows_cancel(impl):
    # A log-sum-exp in one number has no digits left for the logarithm of 7: the weights would sum to 7.
    x = torch.ones(8, 4)
    (gradient,) = run(lambda x: supcon(x, torch.arange(8) // 4, 2.0**40, impl=impl), x)[1:]
    assert gradient.abs().max() <= 1e-6 * 2.0**40


def whole_numbers(seed, n, d, exponent):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (n, d), generator=generator).float() * 2.0**exponent


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 40), d=st.integers(1, 8), exponent=st.integers(-55, 55), logits=st.integers(-100, 110),
    seed=st.integers(0, 10**6), symmetric=st.booleans(), within=st.booleans(), bank=st.integers(0, 9),
)  # fmt: skip
def test_exact_info_nce(n, d, exponent, logits, seed, symmetric, within, bank):
    # Products of small whole numbers are exact, and so are ties: the results are float64's at any size.
    query, key, rows = (whole_numbers(seed + i, size, d, exponent) for i, size in enumerate((n, n, bank)))
    scale = 2.0 ** max(-120, min(120, logits - 2 * exponent))

    def loss(q, k, impl):
        options = {"symmetric": symmetric, "within": within, "bank": rows.to(q.dtype)}
        return info_nce(q, k, scale, reduction="none", impl=impl, **options)

    actual = run(lambda *x: loss(*x, "cpp"), query, key)
    truth = run(lambda *x: loss(*x, "reference"), query.double(), key.double())
    natural = [1, scale * query.abs().max().item() + scale * 2.0**exponent]
    for f, t, size in zip(actual, truth, [natural[0], natural[1], natural[1]], strict=True):
        if t.abs().max() < 1e37:
            assert f.isfinite().all()
            torch.testing.assert_close(f.double(), t, rtol=3e-6, atol=3e-6 * size)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 40), d=st.integers(1, 8), exponent=st.integers(-55, 55), logits=st.integers(-100, 110),
    seed=st.integers(0, 10**6), classes=st.integers(1, 60),
)  # fmt: skip
def test_exact_supcon(n, d, exponent, logits, seed, classes):
    x, labels = whole_numbers(seed, n, d, exponent), torch.arange(n) * 7 % classes
    scale = 2.0 ** max(-120, min(120, logits - 2 * exponent))
    actual = run(lambda x: supcon(x, labels, scale, reduction="none", impl="cpp"), x)
    truth = run(lambda x: supcon(x, labels, scale, reduction="none", impl="reference"), x.double())
    largest = scale * x.square().sum(1).max().item()
    for f, t, size in zip(actual, truth, [1 + largest, scale * 2.0**exponent], strict=True):
        if t.abs().max() < 1e37:
            assert f.isfinite().all()
            torch.testing.assert_close(f.double(), t, rtol=3e-6, atol=3e-6 * size)


def test_short_positives_beside_a_long_row():
    # Of the sum over a class less a row that is 1e20 as long, nothing of the others is left.
    x = torch.tensor([[1e15, 1e15], [1e-5, 3e-5], [2e-5, -1e-5], [1e3, 1e3]])
    labels = torch.tensor([0, 0, 0, 1])
    actual, truth = (
        run(lambda x, impl=impl: supcon(x, labels, 1e-9, reduction="none", impl=impl), rows)
        for impl, rows in (("cpp", x), ("reference", x.double()))
    )
    for f, t in zip(actual, truth, strict=True):
        torch.testing.assert_close(f.double(), t, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e3, 1e8, 1e18])
def test_cluster_cross_entropy_of_long_centroids(size):
    centroids, x, target = size * torch.randn(9, 16), torch.randn(50, 16), torch.randint(9, (50,))
    assert_as_exact_as_eager(
        lambda x, impl: cluster_cross_entropy(x, centroids.to(x.dtype), target=target, impl=impl)[0],
        [x],
        torch.float32,
    )


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float64, 1024), (torch.float32, 128)])
def test_masked_entries_of_a_tile_below_its_shifts(dtype, exponent):
    # All rows lie equally far apart, with logits just below minus that power of two. The masked half of a square block
    # was 0 times two to that power, which is infinite.
    square = (exponent + 0.3) * math.log(2)
    x = math.sqrt(square / 2) * torch.eye(40, dtype=dtype)
    statistics = block_statistics(x, None, torch.tensor(1.0, dtype=dtype), similarity="sql2", impl="cpp")
    torch.testing.assert_close(
        statistics[0] + statistics[1], torch.full((40,), math.log(39) - square, dtype=dtype)
    )


PROGRAM = """
import torch
from cmx_fast.ops import info_nce, supcon
torch.manual_seed(0)
far = (128.3 * 0.6931471805599453 / 2) ** 0.5 * torch.eye(40)
assert info_nce(far, far.clone(), 1.0, similarity="sql2", within=True, impl="cpp").isfinite()
x, y = torch.randint(-3, 4, (2, 40, 8)).float()
for scale in (1.0, 40.0, 3e8, 2.0**90):
    for similarity in ("dot", "sql2"):
        q, k = x.clone().requires_grad_(), y.clone().requires_grad_()
        a, b = x.double().requires_grad_(), y.double().requires_grad_()
        info_nce(q, k, scale, similarity=similarity, within=True, impl="cpp").backward()
        info_nce(a, b, scale, similarity=similarity, within=True, impl="reference").backward()
        torch.testing.assert_close(q.grad.double(), a.grad, rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(k.grad.double(), b.grad, rtol=1e-5, atol=1e-6 * scale)
    q, a = x.clone().requires_grad_(), x.double().requires_grad_()
    labels = torch.arange(40) // 3
    supcon(q, labels, scale, impl="cpp").backward()
    supcon(a, labels, scale, impl="reference").backward()
    torch.testing.assert_close(q.grad.double(), a.grad, rtol=1e-5, atol=1e-6 * scale)
"""


@pytest.mark.parametrize("capability", held_back_to("default", "avx2", "avx512"))
def test_every_instruction_set(capability):
    printed_by(PROGRAM, capability)  # it fails where an assertion of the program does


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_what_is_not_finite_shows_in_losses_and_gradients(value, scale):
    x, y = torch.randn(9, 6), torch.randn(9, 6)
    y[4, 2] = value
    losses, dx, _ = run(lambda x, y: info_nce(x, y, scale, reduction="none", impl="cpp"), x, y)
    assert losses.isnan().all() and dx.isnan().all()
    labels = torch.arange(9) // 2
    losses, dy = run(lambda y: supcon(y, labels, scale, reduction="none", impl="cpp"), y)
    assert losses.isnan().all() and dy.isnan().any()
