import pytest
import torch
import torch.nn.functional as F
from forked_programs import run_program
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import attention

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "attention_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

#: (leading dimensions, N, M, D, E)
SHAPES = [
    ((), 1, 1, 1, 1),
    ((2,), 7, 5, 3, 11),
    ((2, 3), 33, 289, 16, 40),
    ((), 300, 97, 64, 130),
    ((3,), 100, 600, 5, 1),
    ((1,), 1000, 1000, 17, 33),
]


def inputs(leading, n, m, d, e):
    return [torch.randn(*leading, *rows) for rows in ((n, d), (m, d), (m, e))]


def per_row(impl, scale=None):
    return lambda q, k, v: attention(q, k, v, scale=scale, impl=impl)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_outputs_and_gradients_match_the_reference_in_float64(shape, scale):
    doubles = [x.double() for x in inputs(*shape)]
    actual = run(per_row("cpp", scale), *doubles)
    assert actual[0].shape == (*shape[0], shape[1], shape[4])
    for f, truth in zip(actual, run(per_row("reference", scale), *doubles)):
        assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [((2,), 63, 129, 17, 33), ((), 400, 600, 64, 130), ((), 1100, 700, 256, 96)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_error_is_at_most_eagers(shape, dtype, scale):
    def loss(q, k, v, impl):
        out = attention(q, k, v, scale=scale, impl=impl)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    assert_as_exact_as_eager(loss, inputs(*shape), dtype)


def test_it_is_pytorchs_attention():
    q, k, v = inputs((2, 4), 50, 70, 16, 16)
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(
        attention(q, k, v, scale=1.0),
        F.scaled_dot_product_attention(q, k, v, scale=1.0),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_large_scores_stay_finite(size):
    q, k, v = inputs((), 40, 600, 8, 5)
    assert all(f.isfinite().all() for f in run(per_row("cpp", 1.0), size * q, k, v))


def test_large_scores_are_as_exact_as_eagers():
    q, k, v = inputs((), 40, 600, 8, 5)
    assert_as_exact_as_eager(
        lambda *x: attention(*x[:3], scale=1.0, impl=x[3]), [1e3 * q, k, v], torch.float32
    )


def test_growing_maxima_rescale_what_came_before():
    key = torch.linspace(-40, 40, 900)[:, None]
    value = torch.randn(900, 3)
    actual = attention(torch.tensor([[1.0], [-1.0], [0.0]]), key, value, scale=1.0)
    truth = attention(
        torch.tensor([[1.0], [-1.0], [0.0]]).double(),
        key.double(),
        value.double(),
        scale=1.0,
        impl="reference",
    )
    assert vector_error(actual, truth) < 1e-5


@given(
    n=st.integers(1, 120),
    m=st.integers(1, 320),
    d=st.integers(1, 20),
    e=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_outputs_are_means_of_values(n, m, d, e, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(rows, d, generator=generator) for rows in (n, m))
    v = torch.rand(m, e, generator=generator)
    out = attention(q, k, v)
    assert (out >= v.min(0).values - 1e-5).all() and (out <= v.max(0).values + 1e-5).all()
    torch.testing.assert_close(attention(q, k, torch.ones(m, 1)), torch.ones(n, 1))
    order = torch.randperm(m, generator=generator)
    torch.testing.assert_close(attention(q, k[order], v[order]), out, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    q, k, v = (x.double().requires_grad_() for x in inputs((2,), 5, 7, 3, 4))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, impl="cpp"), (q, k, v))


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_only_what_is_needed_gets_a_gradient(needed):
    tensors = [x.requires_grad_(bool(wanted)) for x, wanted in zip(inputs((), 200, 300, 8, 12), needed)]
    attention(*tensors).square().sum().backward()
    expected = [x.detach().clone().requires_grad_() for x in tensors]
    attention(*expected).square().sum().backward()
    for x, truth, wanted in zip(tensors, expected, needed):
        assert x.grad.equal(truth.grad) if wanted else x.grad is None


@pytest.mark.parametrize(("n", "m", "d", "e"), [(0, 5, 3, 2), (4, 0, 3, 2), (4, 5, 0, 2), (4, 5, 3, 0)])
def test_empty_sizes(n, m, d, e):
    actual = run(per_row("cpp"), *inputs((2,), n, m, d, e))
    expected = run(per_row("reference"), *inputs((2,), n, m, d, e))
    assert [f.shape for f in actual] == [x.shape for x in expected]
    assert all(f.isfinite().all() for f in actual)
    if m == 0:
        assert actual[0].eq(0).all()


def test_strides_and_stride_0_gradients():
    q, k, v = inputs((2,), 60, 80, 12, 9)
    twisted = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(attention(*twisted), attention(q, k, v))
    leaf = v.clone().requires_grad_()
    attention(q, k, leaf).sum().backward()
    torch.testing.assert_close(leaf.grad.sum((1, 2)), torch.full((2,), 60.0 * 9))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_shows(which):
    tensors = inputs((), 40, 50, 6, 7)
    tensors[which][3, 2] = float("nan")
    out = attention(*tensors)
    assert out[3].isnan().all() if which == 0 else out.isnan().any(1).all()
    if which == 0:
        assert out[[0, 1, 2, 4]].isfinite().all()


def test_same_bits_twice_and_on_any_number_of_threads():
    tensors = inputs((2,), 500, 700, 24, 40)
    first = run(per_row("cpp"), *tensors)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(f.equal(x) for f, x in zip(run(per_row("cpp"), *tensors), first))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in inputs((2,), 9, 13, 4, 6))
    torch.library.opcheck(torch.ops.cmx_fast.attention_fwd, (q, k, v, 0.5))
    plain = [x.detach() for x in (q, k, v)]
    _, lse = torch.ops.cmx_fast.attention_fwd(*plain, 0.5)
    grad = torch.randn(2, 9, 6).to(dtype)
    torch.library.opcheck(torch.ops.cmx_fast.attention_bwd, (grad, *plain, lse, 0.5, True, False, True))


def test_compiles_without_a_graph_break():
    q, k, v = (x.requires_grad_() for x in inputs((2,), 30, 40, 8, 16))
    compiled = torch.compile(attention, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, scale=1.0), attention(q, k, v, scale=1.0))
    compiled(q, k, v, scale=1.0).square().sum().backward()
    assert q.grad.isfinite().all()


def test_autocast_computes_in_its_dtype():
    tensors = inputs((), 30, 40, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(*tensors).dtype == torch.bfloat16


def test_second_derivatives_refuse():
    q, k, v = (x.requires_grad_() for x in inputs((), 4, 5, 3, 2))
    (grad,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="attention has no second derivatives; use impl='reference'"
    ):
        grad.sum().backward()


MEMORY = """
import torch
from cmx_fast.benchmarks.harness.memory import extra_peak
from cmx_fast.ops import attention
q, k, v = (torch.randn(1, 4096, width, requires_grad=True) for width in (64, 64, 512))
grad = torch.ones(1, 4096, 512)
for size in (64, 4096):
    q.grad = k.grad = v.grad = None
    step = lambda: attention(q[:, :size], k[:, :size], v[:, :size], scale=1.0, impl="{impl}").backward(grad[:, :size])
    used = extra_peak(step)
print(used / 2**20)
"""


def test_no_score_matrix():
    def used(impl):
        return float(run_program(MEMORY.format(impl=impl)).stdout)

    # MiB; the scores alone are 64, and eager holds three times that.
    assert used("cpp") < 64 < used("reference") / 3


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, torch.ones(2, 3), torch.ones(2, 3)), {}, TypeError, r"query must be a tensor of shape \(\*, N, D\)"),
        ((torch.ones(2, 3).int(),) * 3, {}, TypeError, "query must be float32"),
        ((torch.ones(3),) * 3, {}, ValueError, r"query must have shape \(\*, N, D\), got \(3,\)"),
        ((torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 4)), {}, ValueError, "key has 4 features per row"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(5, 3)), {}, ValueError, "value has 5 rows but key has 2"),
        ((torch.ones(2, 3), torch.ones(1, 2, 3), torch.ones(2, 3)), {}, ValueError, "key has leading dimensions"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3).double()), {}, TypeError, "value is torch.float64"),
        ((torch.ones(2, 3),) * 3, {"scale": 0.0}, ValueError, "scale must be a positive and finite number, got 0.0"),
        ((torch.ones(2, 3),) * 3, {"scale": "1"}, ValueError, "scale must be a positive and finite number, got '1'"),
        ((torch.ones(2, 3),) * 3, {"impl": "fast"}, ValueError, "impl must be one of"),
        ((torch.ones(2, 3),) * 3, {"impl": "triton"}, ValueError, "attention: impl='triton' can't run here"),
    ],
)  # fmt: skip
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        attention(*arguments, **options)
