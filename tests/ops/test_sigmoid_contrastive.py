import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import held_back_to, printed_by
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import sigmoid_contrastive

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "sigmoid_contrastive_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def pairs(n, m, d, noise=1.0):
    """Keys near their queries, and more keys: derivatives by the scale of random pairs would cancel to noise."""
    query = unit_rows(n, d)
    near = F.normalize(query + noise * torch.randn(n, d) / d**0.5, dim=-1)
    return query, torch.cat([near, unit_rows(m - n, d)])


def numbers(scale=10.0, bias=-10.0, dtype=torch.float32):
    return torch.tensor(scale, dtype=dtype), torch.tensor(bias, dtype=dtype)


def ids_of(n, m, classes):
    """Ids of any size and sign, of which some occur on one side alone."""
    values = torch.randint(-(2**63), 2**63 - 1, (classes + 2,))
    return {
        "query_ids": values[torch.randint(classes + 1, (n,))],
        "key_ids": values[torch.randint(1, classes + 2, (m,))],
    }


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("classes", [None, 1, 7, 500])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("n", "m", "d"), [(131, 331, 17), (1, 1, 3), (40, 40, 64)])
def test_every_combination_matches_the_reference_in_float64(normalize, classes, reduction, n, m, d):
    inputs = [torch.randn(n, d).double() / d**0.5, torch.randn(m, d).double() / d**0.5]
    options = {} if classes is None else ids_of(n, m, classes)
    results = [
        run(
            lambda *x, impl=impl: sigmoid_contrastive(
                *x, **options, normalize=normalize, reduction=reduction, impl=impl
            ),
            *inputs,
            *numbers(3.0, -1.5, torch.float64),
        )
        for impl in ("cpp", "reference")
    ]
    for actual, truth in zip(*results, strict=True):
        assert vector_error(actual, truth) < 1e-12


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_of_the_inputs_may_lack_a_gradient(needed, reduction):
    inputs = [unit_rows(40, 16), unit_rows(40, 16), *numbers()]
    pull = torch.linspace(1, 2, 40) if reduction == "none" else torch.tensor(1.5)

    def gradients(which):
        leaves = [x.clone().requires_grad_(index in which) for index, x in enumerate(inputs)]
        (sigmoid_contrastive(*leaves, reduction=reduction, impl="cpp") * pull).sum().backward()
        return [leaf.grad for leaf in leaves]

    for index, (some, every) in enumerate(zip(gradients(needed), gradients(range(4)), strict=True)):
        assert some.equal(every) if index in needed else some is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m", "d"), [(5, 5, 17), (63, 64, 64), (129, 300, 100), (1000, 1000, 17)])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_error_is_at_most_eagers(dtype, n, m, d, reduction):
    assert_as_exact_as_eager(
        lambda *x: sigmoid_contrastive(*x[:-1], reduction=reduction, impl=x[-1]),
        [*pairs(n, m, d), *numbers()],
        dtype,
    )


@pytest.mark.parametrize("noise", [0.9, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_eagers_when_the_pairs_are_learnt(noise, dtype):
    assert_as_exact_as_eager(
        lambda *x: sigmoid_contrastive(*x[:-1], reduction="none", impl=x[-1]),
        [*pairs(300, 300, 64, noise), *numbers(100.0, -60.0)],
        dtype,
    )


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e4, 1e20, 1e36])
@pytest.mark.parametrize("bias", [0.0, -1e-38, 1e-20, -80.0, 200.0, -1e30, 1e36])
def test_logits_of_any_size(scale, bias):
    inputs = [unit_rows(64, 32), unit_rows(64, 32)]
    truth = run(
        lambda *x: sigmoid_contrastive(*x, reduction="none", impl="reference"),
        *(x.double() for x in inputs),
        *numbers(scale, bias, torch.float64),
    )
    actual = run(
        lambda *x: sigmoid_contrastive(*x, reduction="none", impl="cpp"), *inputs, *numbers(scale, bias)
    )
    for f, t in zip(actual, truth, strict=True):
        if t.abs().max() < 1e38:
            assert f.isfinite().all()
            assert vector_error(f, t) < 3e-5


def test_confident_pairs_keep_their_digits():
    # A loss of exp(-t) each: log(1 + exp(-t)) rounded to 1 before the logarithm would be 0.
    for size in (16.0, 36.0, 81.0):
        q = torch.eye(3) * size**0.5
        losses = sigmoid_contrastive(q, q, 2.0, -size, reduction="none", impl="cpp")
        expected = 3 * math.exp(-size)
        torch.testing.assert_close(losses.double(), torch.full((3,), expected).double(), rtol=3e-6, atol=0)


def test_known_values():
    query, key = unit_rows(7, 4), torch.zeros(7, 4)
    assert sigmoid_contrastive(query, key, 10.0, 0.0, impl="cpp").item() == pytest.approx(
        7 * math.log(2), rel=1e-6
    )
    # The paper's start: of N pairs of a row all but one are right already.
    loss = sigmoid_contrastive(query, key, impl="cpp").item()
    assert loss == pytest.approx(math.log1p(math.exp(10)) + 6 * math.log1p(math.exp(-10)), rel=1e-6)
    assert sigmoid_contrastive(query, key, 10.0, 0.0, reduction="sum", impl="cpp").item() == pytest.approx(
        49 * math.log(2), rel=1e-6
    )


@settings(max_examples=40)
@given(n=st.integers(1, 40), m=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 1000))
def test_parts_of_the_keys_add_up(n, m, cut, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(n, 8, generator=generator), torch.randn(m, 8, generator=generator)
    of_query, of_key = torch.arange(n) % 5, torch.arange(m) % 4
    whole = sigmoid_contrastive(
        query, key, 2.0, -1.0, query_ids=of_query, key_ids=of_key, reduction="none", impl="cpp"
    )
    parts = sum(
        sigmoid_contrastive(
            query,
            key[part],
            2.0,
            -1.0,
            query_ids=of_query,
            key_ids=of_key[part],
            reduction="none",
            impl="cpp",
        )
        for part in (slice(0, cut), slice(cut, None))
    )
    torch.testing.assert_close(parts, whole, rtol=3e-6, atol=1e-6)


@settings(max_examples=40)
@given(m=st.integers(1, 40), seed=st.integers(0, 1000))
def test_order_of_pairs_does_not_matter_and_sides_may_be_exchanged(m, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, m, 8, generator=generator)
    order = torch.randperm(m, generator=generator)
    losses = sigmoid_contrastive(query, key, 2.0, -1.0, normalize=True, reduction="none", impl="cpp")
    moved = sigmoid_contrastive(
        query[order], key[order], 2.0, -1.0, normalize=True, reduction="none", impl="cpp"
    )
    torch.testing.assert_close(moved, losses[order], rtol=3e-6, atol=1e-6)
    exchanged = sigmoid_contrastive(key, query, 2.0, -1.0, normalize=True, impl="cpp")
    torch.testing.assert_close(exchanged, losses.mean(), rtol=3e-6, atol=1e-6)


def test_ids_of_the_diagonal_are_the_default():
    query, key = unit_rows(30, 8), unit_rows(50, 8)
    ids = {"query_ids": torch.arange(30) * 3, "key_ids": torch.arange(50) * 3}
    plain = sigmoid_contrastive(query, key, reduction="none", impl="cpp")
    assert sigmoid_contrastive(query, key, **ids, reduction="none", impl="cpp").equal(plain)


def test_leading_dimensions_are_problems_of_their_own():
    query, key = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 30, 8)
    ids = {"query_ids": torch.randint(5, (2, 3, 20)), "key_ids": torch.randint(5, (2, 3, 30))}
    losses = sigmoid_contrastive(query, key, **ids, normalize=True, reduction="none", impl="cpp")
    assert losses.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            own = {name: value[i, j] for name, value in ids.items()}
            alone = sigmoid_contrastive(
                query[i, j], key[i, j], **own, normalize=True, reduction="none", impl="cpp"
            )
            assert alone.equal(losses[i, j])
    mean = sigmoid_contrastive(query, key, **ids, normalize=True, impl="cpp")
    torch.testing.assert_close(mean, losses.mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("n", "m", "d"), [(0, 0, 5), (0, 7, 5), (4, 6, 0)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty_sizes(n, m, d, reduction):
    results = [
        run(
            lambda *x, impl=impl: sigmoid_contrastive(*x, reduction=reduction, impl=impl),
            torch.randn(n, d),
            torch.randn(m, d),
            *numbers(2.0, 0.5),
        )
        for impl in ("cpp", "reference")
    ]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_no_keys_at_all():
    ids = {"query_ids": torch.arange(4), "key_ids": torch.arange(0)}
    losses = sigmoid_contrastive(torch.randn(4, 3), torch.randn(0, 3), **ids, reduction="none", impl="cpp")
    assert losses.equal(torch.zeros(4))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_what_is_not_finite_shows_in_losses_and_gradients(value, impl, scale):
    x, y = torch.randn(9, 6), torch.randn(9, 6)
    y[4, 2] = value
    losses, dx, *_ = run(
        lambda *x: sigmoid_contrastive(*x, reduction="none", impl=impl), x, y, *numbers(scale)
    )
    assert losses.isnan().all()
    assert dx.isnan().all() or impl == "reference"
    losses = sigmoid_contrastive(y, x, scale, reduction="none", impl=impl)
    assert losses.isnan().tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_same_bits_twice_and_for_any_number_of_threads(reduction):
    inputs = unit_rows(900, 40), unit_rows(1100, 40), *numbers()

    def once():
        return run(lambda *x: sigmoid_contrastive(*x, reduction=reduction, impl="cpp"), *inputs)

    first, threads = once(), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_by_finite_differences(reduction, normalize):
    inputs = [torch.randn(5, 3), torch.randn(6, 3), torch.tensor(1.3), torch.tensor(-0.4)]
    ids = {"query_ids": torch.tensor([0, 1, 1, 2, 3]), "key_ids": torch.tensor([1, 1, 0, 5, 2, 2])}
    assert torch.autograd.gradcheck(
        lambda *x: sigmoid_contrastive(*x, **ids, normalize=normalize, reduction=reduction, impl="cpp"),
        [x.double().requires_grad_() for x in inputs],
    )


def test_a_graph_may_be_walked_twice():
    leaves = [x.requires_grad_() for x in (unit_rows(20, 8), unit_rows(20, 8), *numbers())]
    loss = sigmoid_contrastive(*leaves, impl="cpp")
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(a.equal(b) for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True))


def test_second_derivatives_are_refused():
    x, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    (gradient,) = torch.autograd.grad(sigmoid_contrastive(x, y, impl="cpp"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize(("kept", "summed"), [(True, True), (False, False)])
def test_registration_passes_opcheck(kept, summed):
    x, y = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 7, 4, requires_grad=True)
    scale, bias = (number.requires_grad_() for number in numbers(2.0, -1.0))
    ids = torch.randint(3, (2, 6)), torch.randint(3, (2, 7))
    for positives, normalize in (((None, None), True), (ids, False)):
        arguments = (x, y, scale, bias, *positives, normalize, summed, kept, kept)
        torch.library.opcheck(torch.ops.cmx_fast.sigmoid_contrastive_fwd, arguments)


def test_the_backward_operator_passes_opcheck():
    x, y, (scale, bias) = torch.randn(2, 6, 4), torch.randn(2, 7, 4), numbers(2.0, -1.0)
    for summed, kept in ((True, True), (False, False)):
        inputs = (x, y, scale, bias, None, None, True, summed)
        loss, *saved = torch.ops.cmx_fast.sigmoid_contrastive_fwd(*inputs, kept, kept)
        torch.library.opcheck(
            torch.ops.cmx_fast.sigmoid_contrastive_bwd, (torch.ones_like(loss), *inputs, *saved, True, True)
        )


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    ids = torch.randint(0, 3, (12,))
    for options in ({}, {"query_ids": ids, "key_ids": ids, "normalize": True, "reduction": "sum"}):

        def loss(x, y, s, b, options=options):
            return sigmoid_contrastive(x * 2, y, s, b, **options)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        inputs = torch.randn(12, 8) / 4, torch.randn(12, 8) / 4, *numbers(2.0, -1.0)
        for actual, expected in zip(run(compiled, *inputs), run(loss, *inputs), strict=True):
            torch.testing.assert_close(actual, expected)


PROGRAM = """
import torch
from cmx_fast.ops import sigmoid_contrastive
torch.manual_seed(0)
x, y = torch.nn.functional.normalize(torch.randn(2, 70, 40), dim=2)
ids = {"query_ids": torch.arange(70) % 9, "key_ids": torch.arange(70) % 8}
for scale, bias in ((10.0, -10.0), (1.0, 50.0), (1e3, -300.0), (2.0**90, 1.0)):
    results = []
    for impl, dtype in (("cpp", torch.float32), ("cpp", torch.float64), ("reference", torch.float64)):
        q, k = (rows.to(dtype, copy=True).requires_grad_() for rows in (x, y))
        s, b = (torch.tensor(number, dtype=dtype, requires_grad=True) for number in (scale, bias))
        loss = sigmoid_contrastive(q, k, s, b, **ids, impl=impl)
        loss.backward()
        results.append([t.double() for t in (loss.detach(), q.grad, k.grad, s.grad, b.grad)])
    single, double, truth = results
    for f, d, t in zip(single, double, truth):
        assert (d - t).norm() <= 1e-12 * t.norm()
        assert (f - t).norm() <= 1e-5 * t.norm(), (scale, bias, f, t)
"""


@pytest.mark.parametrize("capability", held_back_to("default", "avx2", "avx512"))
def test_every_instruction_set(capability):
    printed_by(PROGRAM, capability)  # it fails where an assertion of the program does


GOOD = {"query": torch.zeros(4, 3), "key": torch.zeros(4, 3)}
IDS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": [1]}, TypeError, r"query must be a tensor of shape \(\*, N, D\), got list"),
        ({"query": torch.zeros(3)}, ValueError, r"query must have shape \(\*, N, D\)"),
        ({"key": torch.zeros(4, 2)}, ValueError, "key has 2 features per row but query has 3"),
        ({"key": torch.zeros(4, 3).double()}, TypeError, "key is torch.float64 but query is torch.float32"),
        ({"key": torch.zeros(2, 4, 3)}, ValueError, "must agree in their leading dimensions"),
        ({"key": torch.zeros(3, 3)}, ValueError, "4 queries but 3 keys: pass query_ids and key_ids"),
        ({"query_ids": IDS}, ValueError, "query_ids and key_ids go together; key_ids is missing"),
        ({"key_ids": IDS}, ValueError, "query_ids and key_ids go together; query_ids is missing"),
        (
            {"query_ids": IDS.double(), "key_ids": IDS},
            TypeError,
            "query_ids must be a tensor of integers, got torch.float64; use query_ids.long",
        ),
        (
            {"query_ids": IDS, "key_ids": IDS[:2]},
            ValueError,
            r"key_ids must have shape \(4,\), got \(2,\)",
        ),
        ({"logit_scale": 0}, ValueError, "logit_scale must be positive"),
        ({"logit_scale": torch.tensor(-1.0)}, ValueError, "logit_scale must be positive .* got -1"),
        ({"logit_bias": math.inf}, ValueError, "logit_bias must be finite, got inf"),
        ({"logit_bias": None}, TypeError, "logit_bias must be a number or a 0-d tensor, got NoneType"),
        ({"logit_bias": torch.zeros(2)}, ValueError, r"logit_bias must be a real 0-d tensor, .* \(2,\)"),
        ({"normalize": 1}, TypeError, "normalize must be True or False, got 1"),
        ({"reduction": "max"}, ValueError, "reduction must be one of .*got 'max'"),
        ({"impl": "triton"}, ValueError, "impl='triton' can't run here"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        sigmoid_contrastive(**(GOOD | change))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8], ids=str)
def test_ids_of_any_width(dtype):
    query, key, ids = unit_rows(12, 8), unit_rows(12, 8), torch.arange(12) % 4
    whole = sigmoid_contrastive(query, key, query_ids=ids, key_ids=ids)
    assert sigmoid_contrastive(query, key, query_ids=ids.to(dtype), key_ids=ids.to(dtype)).equal(whole)


def test_transposed_features():
    query, key = torch.randn(30, 200).T, torch.randn(30, 200).T
    actual = run(lambda *x: sigmoid_contrastive(*x, impl="cpp"), query, key)
    same = run(lambda *x: sigmoid_contrastive(*x, impl="cpp"), query.contiguous(), key.contiguous())
    assert all(a.equal(b) for a, b in zip(actual, same, strict=True))


def test_more_rows_than_a_panel_of_derivatives():
    # 9000 keys leave room for 930 rows in a panel.
    inputs = unit_rows(1000, 8), unit_rows(9000, 8), *numbers(5.0, -2.0)
    truth = run(lambda *x: sigmoid_contrastive(*x, impl="reference"), *inputs)
    for f, t in zip(run(lambda *x: sigmoid_contrastive(*x, impl="cpp"), *inputs), truth, strict=True):
        assert vector_error(f, t) < 2e-6
