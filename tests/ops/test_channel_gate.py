"""``channel_gate`` against its reference and the contract of every operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import channel_gate

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "channel_gate_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

#: Shapes of x and widths of the hidden layer: planes below and above a run, groups of one and of several samples.
SHAPES = [((1, 1, 1), 1), ((2, 5, 3, 3), 2), ((3, 20, 70, 90), 3), ((9, 64, 7, 7), 16), ((2, 33, 2, 3, 5), 5)]


def inputs(shape, hidden, residual=True):
    channels = shape[1]
    weights = [
        torch.randn(hidden, channels) / channels**0.5, torch.randn(channels, hidden), torch.randn(hidden),
        torch.randn(channels),
    ]  # fmt: skip
    return [torch.randn(shape), *weights, *([torch.randn(shape)] if residual else [])]


def gate(impl, maximum=False):
    def call(x, w1, w2, b1, b2, *residual):
        return channel_gate(x, w1, w2, b1, b2, maximum=maximum, residual=(*residual, None)[0], impl=impl)

    return call


@pytest.mark.parametrize(("shape", "hidden"), SHAPES)
@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_result_and_gradients_match_the_reference_in_float64(shape, hidden, maximum, residual):
    doubles = [x.double() for x in inputs(shape, hidden, residual)]
    actual, truth = run(gate("cpp", maximum), *doubles), run(gate("reference", maximum), *doubles)
    assert actual[0].shape == shape
    for f, right in zip(actual, truth, strict=True):
        assert vector_error(f, right) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "hidden"), SHAPES[1:4])
@pytest.mark.parametrize("maximum", [False, True])
def test_error_is_at_most_eagers(shape, hidden, dtype, maximum):
    def loss(x, residual, impl):
        out = channel_gate(x, *weights, maximum=maximum, residual=residual, impl=impl)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    x, *weights, residual = inputs(shape, hidden)
    assert_as_exact_as_eager(loss, [x, residual], dtype)


def test_it_is_squeeze_and_excitation():
    x, w1, w2, b1, b2, residual = inputs((4, 12, 5, 6), 3)
    factor = torch.sigmoid(F.linear(F.relu(F.linear(x.mean((2, 3)), w1, b1)), w2, b2))[:, :, None, None]
    torch.testing.assert_close(channel_gate(x, w1, w2, b1, b2), factor * x)
    torch.testing.assert_close(
        channel_gate(x, w1, w2, b1, b2, residual=residual), F.relu(factor * x + residual)
    )
    zero = torch.zeros
    torch.testing.assert_close(
        channel_gate(x, w1, w2), channel_gate(x, w1, w2, zero(3), zero(12)), rtol=0, atol=0
    )


@given(
    batch=st.integers(1, 9),
    channels=st.integers(1, 40),
    positions=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_gates_are_the_same_for_all_positions_and_do_not_see_their_order(batch, channels, positions, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, channels, positions, generator=generator) + 0.5
    w1, w2 = (torch.randn(*size, generator=generator) for size in ((3, channels), (channels, 3)))
    factors = channel_gate(x, w1, w2, maximum=True) / x
    torch.testing.assert_close(factors, factors[:, :, :1].expand_as(x))
    assert ((factors >= 0) & (factors <= 1 + 1e-6)).all()
    order = torch.randperm(positions, generator=generator)
    moved = channel_gate(x[:, :, order], w1, w2, maximum=True)
    torch.testing.assert_close(moved, (factors * x)[:, :, order], rtol=1e-4, atol=1e-5)


def test_the_first_of_equal_positions_gets_the_maximums_gradient():
    x = torch.zeros(1, 2, 5000, requires_grad=True)
    w1, w2 = torch.ones(1, 2), torch.ones(2, 1)
    with torch.no_grad():
        x[0, 0, [4200, 4900]] = 2.0
    for impl in ("cpp", "reference"):
        x.grad = None
        channel_gate(x, w1, w2, maximum=True, impl=impl).sum().backward()
        slopes = x.grad[0, 0] - x.grad[0, 0, 0]
        assert slopes.nonzero().flatten().tolist() == [4200]


def test_gradcheck():
    tensors = [x.double().requires_grad_() for x in inputs((2, 4, 3, 2), 3)]
    for maximum in (False, True):
        assert torch.autograd.gradcheck(gate("cpp", maximum), tensors)


def test_strides_and_stride_0_gradients():
    x, *weights = inputs((2, 6, 4, 5), 2, residual=False)
    twisted = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(channel_gate(twisted, *weights, impl="cpp"), channel_gate(x, *weights))
    leaf = x.clone().requires_grad_()
    channel_gate(leaf, *weights).sum().backward()
    expected = x.clone().requires_grad_()
    channel_gate(expected, *weights, impl="reference").sum().backward()
    torch.testing.assert_close(leaf.grad, expected.grad)


def test_channels_last_stays_so():
    x, *weights = inputs((2, 6, 4, 5), 2)
    lasting = [t.contiguous(memory_format=torch.channels_last) for t in (x, weights.pop())]
    out = channel_gate(lasting[0], *weights, residual=lasting[1])
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_nan_shows():
    x, *weights = inputs((3, 6, 40), 2, residual=False)
    x[1, 2, 7] = float("nan")
    for maximum in (False, True):
        out = channel_gate(x, *weights, maximum=maximum)
        assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


def test_empty_batch():
    x, *weights = inputs((0, 6, 4), 2)
    actual = run(gate("cpp"), x, *weights)
    assert actual[0].shape == (0, 6, 4)
    assert all(f.eq(0).all() for f in actual[2:])


def test_same_bits_twice_and_on_any_number_of_threads():
    tensors = inputs((5, 64, 30, 30), 8)
    first = run(gate("cpp", True), *tensors)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert all(f.equal(x) for f, x in zip(run(gate("cpp", True), *tensors), first, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck(dtype, maximum, with_residual):
    x, w1, w2, b1, b2, residual = inputs((2, 6, 9), 3)
    wide = torch.promote_types(dtype, torch.float32)
    weights = [t.to(wide).requires_grad_() for t in (w1, b1, w2, b2)]
    x, residual = x.to(dtype).requires_grad_(), residual.to(dtype) if with_residual else None
    torch.library.opcheck(torch.ops.cmx_fast.channel_gate_fwd, (x, residual, *weights, maximum))
    plain = [t.detach() for t in weights]
    out, _, hidden, factor, peak = torch.ops.cmx_fast.channel_gate_fwd(x.detach(), residual, *plain, maximum)
    kept = out if with_residual else None
    torch.library.opcheck(
        torch.ops.cmx_fast.channel_gate_bwd,
        (torch.randn_like(out), x.detach(), kept, plain[0], plain[2], hidden, factor, peak),
    )


def test_compiles_without_a_graph_break():
    tensors = [x.requires_grad_() for x in inputs((2, 6, 4, 5), 2)]
    call = gate("auto", True)
    torch.testing.assert_close(torch.compile(call, fullgraph=True)(*tensors), call(*tensors))


def test_second_derivatives_refuse():
    x, *weights = inputs((1, 2, 3), 1, residual=False)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(channel_gate(x, *weights).sum(), x, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="channel_gate has no second derivatives; use impl='reference'"
    ):
        grad.sum().backward()


X, W1, W2 = torch.ones(2, 4, 3), torch.ones(2, 4), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, W1, W2), {}, TypeError, r"x must be a tensor of shape \(B, C, \*\)"),
        ((X.int(), W1, W2), {}, TypeError, "x must be float32"),
        ((X[0], W1, W2), {}, ValueError, r"x must have shape \(B, C, \*\), got \(4, 3\)"),
        ((X[:, :, :0], W1, W2), {}, ValueError, "x must have channels and positions"),
        ((X, W2, W2), {}, ValueError, r"hidden_weight must have shape \(H, 4\) with H > 0, got \(4, 2\)"),
        ((X, W1, W1), {}, ValueError, r"gate_weight must have shape \(4, 2\), got \(2, 4\)"),
        ((X, W1, W2, torch.ones(4)), {}, ValueError, r"hidden_bias must have shape \(2,\), got \(4,\)"),
        ((X, W1, W2, None, torch.ones(2)), {}, ValueError, r"gate_bias must have shape \(4,\), got \(2,\)"),
        ((X, W1, W2), {"residual": X[:1]}, ValueError, r"residual has shape \(1, 4, 3\) but x has \(2, 4, 3\)"),
        ((X, W1, W2), {"residual": X.double()}, TypeError, "residual is torch.float64 but x is torch.float32"),
        ((X, W1, W2), {"residual": 3}, TypeError, "residual must be a tensor like x, got int"),
        ((X, W1.to("meta"), W2), {}, ValueError, "hidden_weight is on meta but x is on cpu"),
        ((X, W1, W2), {"impl": "fast"}, ValueError, "impl must be one of"),
        ((X, W1, W2), {"impl": "triton"}, ValueError, "channel_gate: impl='triton' can't run here"),
    ],
)  # fmt: skip
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        channel_gate(*arguments, **options)
