import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import cache_budget, info_nce, set_cache_budget, supcon

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "supcon_fwd"), reason="the C++ extension is not built (CMX_NO_EXTENSION)"
)


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rectangular", [True, False])
@pytest.mark.parametrize("classes", [1, 5, 10**9])
@pytest.mark.parametrize("budget", [0, 2**28])
def test_every_combination_matches_the_reference_in_float64(normalize, rectangular, classes, budget):
    d = 17 if budget == 0 else 512  # what is kept only pays for wide rows
    features, labels = torch.randn(131, d).double() / d**0.5, torch.randint(-classes, classes, (131,))
    ref, ref_labels = torch.randn(47, d).double() / d**0.5, torch.randint(-classes, classes, (47,))
    scale = torch.tensor(3.0).double()

    def loss(x, r, s, impl):
        columns = {"ref_features": r, "ref_labels": ref_labels} if rectangular else {"ref_features": None}
        plain = supcon(x, labels, s, **columns, normalize=normalize, reduction="none", impl=impl)
        return plain if rectangular else plain + 0 * r.sum()

    before = cache_budget()
    set_cache_budget(budget)
    try:
        actual = run(lambda *x: loss(*x, "cpp"), features, ref, scale)
    finally:
        set_cache_budget(before)
    for f, truth in zip(actual, run(lambda *x: loss(*x, "reference"), features, ref, scale)):
        assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "d"), [(5, 17), (63, 64), (129, 300), (1000, 17)])
def test_error_is_at_most_eagers(dtype, m, d):
    labels = torch.randint(0, max(m // 4, 2), (m,))
    assert_as_exact_as_eager(
        lambda x, s, impl: supcon(x, labels, s, reduction="none", impl=impl),
        [unit_rows(m, d), torch.tensor(1 / 0.07)],
        dtype,
    )


@pytest.mark.parametrize("noise", [0.9, 0.55, 0.25])  # losses of about 1, 0.1 and 0.001
@pytest.mark.parametrize("rectangular", [True, False])
def test_gradient_keeps_its_digits_when_the_only_positive_dominates(noise, rectangular):
    n, d = 512, 64
    first = unit_rows(n, d)
    second = F.normalize(first + noise * torch.randn(n, d) / math.sqrt(d), dim=-1)
    labels = torch.arange(n)

    def loss(x, y, impl):
        if rectangular:
            pairs = {"ref_features": y, "ref_labels": labels}
            return supcon(x, labels, reduction="none", impl=impl, **pairs)
        return supcon(torch.cat([x, y]), labels.repeat(2), reduction="none", impl=impl)

    assert_as_exact_as_eager(loss, [first, second], torch.float32)


@given(n=st.integers(2, 30), seed=st.integers(0, 1000))
def test_distinct_labels_on_two_views_are_nt_xent(n, seed):
    first, second = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(seed))
    loss = supcon(torch.cat([first, second]), torch.arange(n).repeat(2), 5.0, normalize=True, impl="cpp")
    nt_xent = info_nce(first, second, 5.0, within=True, normalize=True, impl="cpp")
    torch.testing.assert_close(loss, nt_xent, rtol=3e-6, atol=1e-6)


def test_known_values():
    equal = torch.ones(10, 4) / 2
    assert supcon(equal, torch.arange(5).repeat(2), impl="cpp").item() == pytest.approx(math.log(9), rel=1e-6)
    assert supcon(equal, torch.zeros(10).long(), impl="cpp").item() == pytest.approx(math.log(9), rel=1e-6)
    assert supcon(equal, torch.arange(10), impl="cpp").item() == 0  # nobody has a positive


@given(m=st.integers(1, 40), seed=st.integers(0, 1000))
def test_order_of_rows_does_not_matter(m, seed):
    generator = torch.Generator().manual_seed(seed)
    x, labels = torch.randn(m, 8, generator=generator), torch.randint(0, 4, (m,), generator=generator)
    order = torch.randperm(m, generator=generator)
    losses = supcon(x, labels, 2.0, normalize=True, reduction="none", impl="cpp")
    moved = supcon(x[order], labels[order], 2.0, normalize=True, reduction="none", impl="cpp")
    torch.testing.assert_close(moved, losses[order], rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-4)])
def test_positives_cancel_where_the_softmax_is_right(dtype, limit):
    # The only candidate is the positive: the gradient is the difference of two parts of size logit_scale, and zero.
    x = unit_rows(2, 17).to(dtype)
    gradient = run(lambda x: supcon(x, torch.zeros(2).long(), 1 / 0.07, impl="cpp"), x)[1]
    assert gradient.abs().max() < limit


def test_rows_without_a_positive_get_no_loss_and_count_in_the_mean():
    x, labels = unit_rows(6, 8), torch.tensor([0, 0, 1, 1, 2, 3])
    losses = supcon(x, labels, reduction="none", impl="cpp")
    assert losses[4:].eq(0).all() and losses[:4].gt(0).all()
    torch.testing.assert_close(supcon(x, labels, impl="cpp"), losses.sum() / 6)
    torch.testing.assert_close(supcon(x, labels, reduction="mean_nonzero", impl="cpp"), losses.sum() / 4)
    torch.testing.assert_close(supcon(x, labels, reduction="sum", impl="cpp"), losses.sum())


@pytest.mark.parametrize("temperature", [0.005, 0.07])
def test_finite_at_low_temperatures_and_for_zero_vectors(temperature):
    x, labels = unit_rows(200, 16), torch.randint(0, 9, (200,))
    x[5] = 0
    scale = torch.tensor(1 / temperature)
    actual = run(lambda x, s: supcon(x, labels, s, normalize=True, impl="cpp"), x, scale)
    truth = run(
        lambda x, s: supcon(x, labels, s, normalize=True, impl="reference"), x.double(), scale.double()
    )
    for f, t in zip(actual, truth):
        assert f.isfinite().all() and vector_error(f, t) < 1e-4


def test_nan_in_the_input_is_nan_in_the_loss():
    x = unit_rows(50, 8)
    x[7, 3] = torch.nan
    assert supcon(x, torch.randint(0, 5, (50,)), impl="cpp").isnan()


def test_same_bits_twice_and_for_any_number_of_threads():
    x, labels = unit_rows(900, 40), torch.randint(0, 30, (900,))
    first = run(lambda x: supcon(x, labels, impl="cpp"), x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(
                torch.equal(a, b) for a, b in zip(first, run(lambda x: supcon(x, labels, impl="cpp"), x))
            )
    finally:
        torch.set_num_threads(threads)


def test_gradient_by_finite_differences():
    x, ref = torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    x.requires_grad_(), ref.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, s: supcon(x, labels, s, reduction="none", impl="cpp"), (x, scale)
    )
    assert torch.autograd.gradcheck(
        lambda x, r, s: supcon(
            x, labels, s, ref_features=r, ref_labels=ref_labels, normalize=True, reduction="none", impl="cpp"
        ),
        (x, ref, scale),
    )


def test_second_derivatives_are_refused():
    x = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(supcon(x, torch.tensor([0, 0, 1, 1]), impl="cpp"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()


def test_registration_passes_opcheck():
    x, ref = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    labels, scale = torch.randint(0, 3, (6,)), torch.tensor(2.0, requires_grad=True)
    for cache in (True, False):
        torch.library.opcheck(torch.ops.cmx_fast.supcon_fwd, (x, labels, scale, None, None, True, cache))
        arguments = (x, labels, scale, ref, torch.randint(0, 3, (5,)), False, cache)
        torch.library.opcheck(torch.ops.cmx_fast.supcon_fwd, arguments)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    labels = torch.randint(0, 3, (12,))
    compiled = torch.compile(lambda x: supcon(x * 2, labels), fullgraph=True, backend="aot_eager")
    x = torch.randn(12, 8) / 4
    for actual, expected in zip(run(compiled, x), run(lambda x: supcon(x * 2, labels), x)):
        torch.testing.assert_close(actual, expected)


GOOD = {"features": torch.zeros(4, 3), "labels": torch.zeros(4, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": torch.zeros(2, 4, 3)}, ValueError, r"features must have shape \(M, D\)"),
        (
            {"labels": torch.zeros(4)},
            TypeError,
            "labels must be a tensor of integers, got torch.float32; use labels.long",
        ),
        (
            {"labels": torch.zeros(5, dtype=torch.int64)},
            ValueError,
            r"labels must have shape \(4,\), got \(5,\)",
        ),
        ({"ref_features": torch.zeros(2, 3)}, ValueError, "ref_labels is missing"),
        ({"ref_labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "ref_features is missing"),
        (
            {"ref_features": torch.zeros(2, 4), "ref_labels": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "ref_features has 4 features per row but features has 3",
        ),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must be positive"),
        ({"reduction": "max"}, ValueError, "reduction must be one of .*got 'max'"),
        ({"impl": "triton"}, ValueError, "impl='triton' can't run here"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        supcon(**(GOOD | change))


@pytest.mark.parametrize("with_ref", [False, True])
def test_transposed_features(with_ref):
    # A copy in row order that lived too short: what lay there by then was summed.
    x, ref = torch.randn(300, 2000).T, torch.randn(300, 1500).T
    labels, of_ref = torch.randint(9, (2000,)), torch.randint(9, (1500,))
    options = {"ref_features": ref, "ref_labels": of_ref} if with_ref else {}
    same = {"ref_features": ref.contiguous(), "ref_labels": of_ref} if with_ref else {}
    for _ in range(3):
        actual = supcon(x, labels, 0.5, **options)
        assert actual.equal(supcon(x.contiguous(), labels, 0.5, **same))
