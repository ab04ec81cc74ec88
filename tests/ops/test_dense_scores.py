import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import cache_budget, dense_scores, set_cache_budget

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "dense_scores_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

POOLS = ["max_mean", "max_sum", "mean_max", "sum_max", "max", "mean"]
WITH_MAXIMUM = POOLS[:-1]
#: (B, M, P, T, D)
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 2, 7, 5, 6),
    (2, 5, 13, 300, 12),
    (2, 3, 331, 29, 18),
    (1, 40, 97, 31, 150),
]


def inputs(b, m, p, t, d):
    return [torch.randn(b, p, d), torch.randn(m, t, d)]


def masks(b, m, p, t):
    """Random tokens, at least one of every item."""
    query, key = torch.rand(b, p) > 0.4, torch.rand(m, t) > 0.4
    query[torch.arange(b), torch.randint(p, (b,))] = True
    key[torch.arange(m), torch.randint(t, (m,))] = True
    return {"query_mask": query, "key_mask": key}


@pytest.fixture(params=["kept", "found again"])
def budget(request):
    """The places of the maxima kept for the backward pass, or not."""
    before = cache_budget()
    set_cache_budget(before if request.param == "kept" else 0)
    yield
    set_cache_budget(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("masked", [False, True])
def test_scores_and_gradients_match_the_reference_in_float64(shape, pool, masked, budget):
    real = masks(*shape[:4]) if masked else {}
    doubles = [x.double() for x in inputs(*shape)]
    for heads, normalize in ((1, False), (3 if shape[-1] % 3 == 0 and pool != "mean" else 1, True)):
        results = [
            run(
                partial(dense_scores, pool=pool, heads=heads, normalize=normalize, impl=impl, **real),
                *doubles,
            )
            for impl in ("cpp", "reference")
        ]
        assert results[0][0].shape == shape[:2]
        for f, truth in zip(*results, strict=True):
            assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("normalize", [False, True])
def test_error_is_at_most_eagers(pool, normalize, dtype):
    def scores(q, k, impl):
        return dense_scores(q, k, pool=pool, normalize=normalize, impl=impl)

    assert_as_exact_as_eager(scores, inputs(6, 5, 41, 67, 64), dtype)


def test_it_is_late_interaction():
    """MaxSim as PyLate and late-interaction-kernels compute it: of questions (A, S, H) and documents (B, T, H)."""
    questions, documents = inputs(4, 6, 11, 50, 32)
    real = masks(4, 6, 11, 50)
    scores = torch.einsum("ash,bth->abst", questions, documents)
    plain = scores.max(axis=-1).values.sum(axis=-1)
    torch.testing.assert_close(dense_scores(questions, documents, pool="sum_max"), plain)
    torch.testing.assert_close(dense_scores(documents, questions, pool="max_sum").T, plain)
    scores = scores.masked_fill(~real["key_mask"][None, :, None, :], -torch.inf).max(axis=-1).values
    masked = (scores * real["query_mask"][:, None]).sum(axis=-1)
    torch.testing.assert_close(dense_scores(questions, documents, pool="sum_max", **real), masked)


def test_it_is_denseavs():
    """Maps (n, c, h, w) against sounds (m, c, f, t) of two heads: maximum over heads and places, mean over time."""
    image, audio = torch.randn(3, 8, 5, 6), torch.randn(4, 8, 1, 9)
    heads = [x.unflatten(1, (2, 4)) for x in (image, audio)]
    similarities = torch.einsum("nkchw,mkcft->nmkhwft", *heads)
    expected = similarities.amax(2).amax((2, 3)).mean((2, 3))
    torch.testing.assert_close(dense_scores(image, audio, heads=2), expected)


@pytest.mark.parametrize("pool", POOLS)
def test_maps_are_read_as_they_lie(pool, budget):
    image, key = torch.randn(3, 10, 4, 5), torch.randn(2, 10, 2, 3, 2)
    tokens = [x.flatten(2).transpose(1, 2).contiguous() for x in (image, key)]
    expected = run(lambda *x: dense_scores(*x, pool=pool, normalize=True), *tokens)
    for layout in (torch.contiguous_format, torch.channels_last):
        actual = run(
            lambda *x: dense_scores(*x, pool=pool, normalize=True),
            image.contiguous(memory_format=layout),
            key,
        )
        torch.testing.assert_close(actual[0], expected[0])
        for gradient, right in zip(actual[1:], expected[1:], strict=True):
            torch.testing.assert_close(gradient.flatten(2).transpose(1, 2), right)


@given(
    pool=st.sampled_from(WITH_MAXIMUM), b=st.integers(1, 4), m=st.integers(1, 4), p=st.integers(1, 30),
    t=st.integers(1, 30), heads=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_neither_order_nor_padding_counts(pool, b, m, p, t, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(b, p, 4 * heads, generator=generator)
    k = torch.randn(m, t, 4 * heads, generator=generator)
    scores = dense_scores(q, k, pool=pool, heads=heads)
    places, tokens = torch.randperm(p, generator=generator), torch.randperm(t, generator=generator)
    torch.testing.assert_close(dense_scores(q[:, places], k[:, tokens], pool=pool, heads=heads), scores)
    padded = [F.pad(x, (0, 0, 2, 3), value=torch.nan) for x in (q, k)]
    real = [F.pad(torch.ones(x.shape[:2], dtype=torch.bool), (2, 3)) for x in (q, k)]
    options = {"pool": pool, "heads": heads, "query_mask": real[0], "key_mask": real[1]}
    actual = run(lambda *x: dense_scores(*x, **options), *padded)
    expected = run(lambda *x: dense_scores(*x, pool=pool, heads=heads), q, k)
    torch.testing.assert_close(actual[0], scores)
    for gradient, right in zip(actual[1:], expected[1:], strict=True):
        assert gradient[:, :2].eq(0).all() and gradient[:, -3:].eq(0).all()
        torch.testing.assert_close(gradient[:, 2:-3], right)


@pytest.mark.parametrize("pool", POOLS)
def test_no_padding_shows_in_a_normalized_gradient(pool):
    q, k = inputs(2, 3, 5, 7, 8)
    real = masks(2, 3, 5, 7)
    q[~real["query_mask"]] = torch.nan
    k[~real["key_mask"]] = torch.inf
    actual = run(lambda *x: dense_scores(*x, pool=pool, normalize=True, **real), q, k)
    assert all(f.isfinite().all() for f in actual)


@pytest.mark.parametrize("pool", WITH_MAXIMUM)
@pytest.mark.parametrize("heads", [1, 2])
def test_the_first_of_equal_similarities_gets_the_gradient(pool, heads):
    """Whole numbers: ties everywhere, as after a ReLU."""
    q, k = torch.randint(-1, 2, (3, 50, 4)).float(), torch.randint(-1, 2, (4, 60, 4)).float()
    results = [
        run(lambda *x, impl=impl: dense_scores(*x, pool=pool, heads=heads, impl=impl), q, k)
        for impl in ("cpp", "reference")
    ]
    for f, right in zip(*results, strict=True):
        torch.testing.assert_close(f, right)
    zeros = torch.zeros(1, 5, 4, requires_grad=True)
    dense_scores(zeros, torch.ones(1, 3, 4), pool="max_sum", heads=heads).backward()
    assert zeros.grad[0, 0].equal(torch.tensor([3.0] * (4 // heads) + [0.0] * (4 - 4 // heads)))
    assert zeros.grad[0, 1:].eq(0).all()


@pytest.mark.parametrize("size", [1e-37, 1e-10, 1e20, 1e36])
@pytest.mark.parametrize("pool", POOLS)
def test_magnitudes(size, pool):
    """Of tokens to be normalised any, above the floor of norms; of others as far as float32 holds the products."""
    q, k = inputs(3, 4, 20, 30, 16)
    actual = run(lambda *x: dense_scores(*x, pool=pool, normalize=True), q * size, k * size)
    truth = dense_scores(q.double(), k.double(), pool=pool, normalize=True, impl="reference")
    if size > 1e-12:
        assert vector_error(actual[0], truth) < 1e-5
    assert all(f.isfinite().all() for f in actual)
    actual = run(lambda *x: dense_scores(*x, pool=pool), q * size, k / size)
    truth = run(
        lambda *x: dense_scores(*x, pool=pool, impl="reference"),
        (q * size).double(),
        (k / size).double(),
    )
    for f, right in zip(actual, truth, strict=True):
        # In units of their size, which float32 holds and its square not.
        unit = right.abs().max()
        assert vector_error(f.double() / unit, right / unit) < 1e-5


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_shows(pool, value):
    q, k = inputs(3, 4, 20, 300, 8)
    q[1, 13, 2] = value
    k[2, 280, 3] = value
    scores = dense_scores(q, k * 0 if value == torch.inf else k, pool=pool)
    assert scores[1].isnan().all() and scores[:, 2].isnan().all()
    assert int(scores.isnan().sum()) == 4 + 3 - 1
    run(lambda *x: dense_scores(*x, pool=pool), q, k)


def test_gradcheck():
    q, k = (x.double().requires_grad_() for x in inputs(2, 3, 4, 5, 6))
    options = masks(2, 3, 4, 5) | {"heads": 2, "normalize": True}
    assert torch.autograd.gradcheck(lambda *x: dense_scores(*x, **options, impl="cpp"), (q, k))


@pytest.mark.parametrize("pool", WITH_MAXIMUM)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_needed_gets_a_gradient(pool, wanted):
    tensors = [x.requires_grad_(needed) for x, needed in zip(inputs(3, 4, 20, 30, 8), wanted, strict=True)]
    dense_scores(*tensors, pool=pool).square().sum().backward()
    expected = [x.detach().clone().requires_grad_() for x in tensors]
    dense_scores(*expected, pool=pool).square().sum().backward()
    for x, truth, needed in zip(tensors, expected, wanted, strict=True):
        assert x.grad.equal(truth.grad) if needed else x.grad is None


@pytest.mark.parametrize(("b", "m", "d"), [(0, 3, 4), (3, 0, 4), (0, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("pool", POOLS)
def test_empty_sizes(pool, b, m, d):
    actual = run(lambda *x: dense_scores(*x, pool=pool), *inputs(b, m, 5, 6, d))
    assert [f.shape for f in actual] == [(b, m), (b, 5, d), (m, 6, d)]
    assert all(f.eq(0).all() for f in actual)


@pytest.mark.parametrize("pool", WITH_MAXIMUM)
def test_strides_and_stride_0_gradients(pool, budget):
    q, k = inputs(5, 4, 20, 30, 8)
    whole = run(lambda *x: dense_scores(*x, pool=pool), q[:, ::2], k[:1].expand(4, -1, -1))
    copies = run(lambda *x: dense_scores(*x, pool=pool), q[:, ::2].contiguous(), k[:1].repeat(4, 1, 1))
    for f, right in zip(whole, copies, strict=True):
        torch.testing.assert_close(f, right)
    leaf = q.clone().requires_grad_()
    dense_scores(leaf, k, pool=pool).sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("pool", WITH_MAXIMUM)
def test_same_bits_twice_and_on_any_number_of_threads(pool, budget):
    tensors = inputs(7, 5, 100, 300, 24)
    first = run(lambda *x: dense_scores(*x, pool=pool), *tensors)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = run(lambda *x: dense_scores(*x, pool=pool), *tensors)
            assert all(f.equal(x) for f, x in zip(again, first, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("pool", "dtype"), [("mean", torch.bfloat16), ("sum", torch.float64), ("max", torch.float32)]
)
def test_opcheck(pool, dtype):
    q, k = (x.to(dtype) for x in inputs(3, 2, 9, 13, 6))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    real = masks(3, 2, 9, 13)
    operators = torch.ops.cmx_fast
    for keep, places in ((True, real["query_mask"]), (False, None)):
        options = (places, real["key_mask"], pool, 2, True, keep)
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        torch.library.opcheck(operators.dense_scores_fwd, (*leaves, *options))
        scores, *kept = operators.dense_scores_fwd(q, k, *options)
        arguments = (torch.randn_like(scores), q, k, *options[:2], *kept, *options[2:5], True, not keep)
        torch.library.opcheck(operators.dense_scores_bwd, arguments)


def test_compiles_without_a_graph_break():
    q, k = (x.requires_grad_() for x in inputs(4, 3, 30, 40, 8))
    compiled = torch.compile(dense_scores, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, heads=2), dense_scores(q, k, heads=2))
    compiled(q, k, heads=2).square().sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("pool", POOLS)
def test_autocast_rounds_the_tokens_alone(pool):
    tensors = inputs(3, 4, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        scores = dense_scores(*tensors, pool=pool)
    assert scores.dtype == torch.float32
    assert scores.equal(dense_scores(*(x.bfloat16() for x in tensors), pool=pool))


@pytest.mark.parametrize("pool", WITH_MAXIMUM)
def test_second_derivatives_refuse(pool):
    q, k = (x.requires_grad_() for x in inputs(2, 3, 4, 5, 6))
    (grad,) = torch.autograd.grad(dense_scores(q, k, pool=pool).sum(), q, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="dense_scores has no second derivatives; use impl='reference'"
    ):
        grad.sum().backward()


MEMORY = """
import torch
from cmx_fast.benchmarks.harness.memory import extra_peak
from cmx_fast.ops import dense_scores
q, k = (torch.randn(24, 200, 64, requires_grad=True) for _ in range(2))
grad = torch.ones(24, 24)
for size in (2, 24):
    q.grad = k.grad = None
    used = extra_peak(lambda: dense_scores(q[:size], k[:size], impl="cpp").backward(grad[:size, :size]))
print(used / 2**20)
print(extra_peak(lambda: dense_scores(q, k, impl="reference").backward(grad)) / 2**20)
"""


def test_no_similarities_of_all_tokens():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    ours, eager = map(float, done.stdout.split())
    # MiB; the similarities are 88, and eager holds several of them.
    assert ours < 10 < eager / 15


X = torch.ones(2, 3, 4)
MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, X), {}, TypeError, r"query must be a tensor of shape \(B, P, D\) or \(B, D, \*S\)"),
        ((X, X.int()), {}, TypeError, "key must be float32"),
        ((torch.ones(3, 4), X), {}, ValueError, r"query must have shape \(B, P, D\) or .* got \(3, 4\)"),
        ((X, torch.ones(2, 3, 5)), {}, ValueError, "key has 5 features per row but query has 4"),
        ((X, torch.ones(2, 5, 3, 3)), {}, ValueError, "key has 5 features per row but query has 4"),
        ((X, X.double()), {}, TypeError, "key is torch.float64 but query is torch.float32"),
        ((X, X[:, :0]), {}, ValueError, "key must have at least one token per item"),
        ((X, X), {"pool": "min"}, ValueError, "pool must be one of 'max_mean'"),
        ((X, X), {"heads": 3}, ValueError, "heads must be positive and divide the 4 features of a token, got 3"),
        ((X, X), {"heads": 0}, ValueError, "heads must be positive"),
        ((X, X), {"heads": 2.0}, TypeError, "heads must be an integer, got 2.0"),
        ((X, X), {"heads": 2, "pool": "mean"}, ValueError, "pool='mean' takes one head, got heads=2"),
        ((X, X), {"normalize": 1}, TypeError, "normalize must be True or False"),
        ((X, X), {"query_mask": MASK.float()}, TypeError, "query_mask must be a bool tensor"),
        ((X, X), {"key_mask": MASK[:1]}, ValueError, r"key_mask must have shape \(2, 3\), a flag per token"),
        ((X, X), {"key_mask": MASK & torch.tensor([[True], [False]])}, ValueError, "key_mask leaves item 1 without"),
        ((X, X), {"impl": "fast"}, ValueError, "impl must be one of"),
        ((X, X), {"impl": "triton"}, ValueError, "dense_scores: impl='triton' can't run here"),
    ],
)  # fmt: skip
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        dense_scores(*arguments, **options)
