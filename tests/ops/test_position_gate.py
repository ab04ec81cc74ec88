"""``pool_channels`` and ``position_gate`` against their references and the contract of every operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import pool_channels, position_gate

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "position_gate_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

SHAPES = [(1, 1, 1), (2, 5, 3, 3), (3, 20, 70, 90), (9, 64, 7, 7), (2, 33, 2, 3, 5)]


def inputs(shape, residual=True):
    gate = torch.rand(shape[0], 1, *shape[2:])
    return [torch.randn(shape), gate, *([torch.randn(shape)] if residual else [])]


def gating(impl):
    return lambda x, gate, *residual: position_gate(x, gate, residual=(*residual, None)[0], impl=impl)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [False, True])
def test_results_and_gradients_match_the_references_in_float64(shape, residual):
    doubles = [x.double() for x in inputs(shape, residual)]
    gated, right_gated = (run(gating(impl), *doubles) for impl in ("cpp", "reference"))
    pooled = run(lambda x: pool_channels(x, impl="cpp"), doubles[0])
    right_pooled = run(lambda x: pool_channels(x, impl="reference"), doubles[0])
    assert gated[0].shape == shape and pooled[0].shape == (shape[0], 2, *shape[2:])
    for f, right in zip((*gated, *pooled), (*right_gated, *right_pooled), strict=True):
        assert vector_error(f, right) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_error_is_at_most_eagers(shape, dtype):
    def wide(out):
        return out.to(torch.promote_types(out.dtype, torch.float32))

    x, gate, residual = inputs(shape)
    assert_as_exact_as_eager(
        lambda x, r, impl: wide(position_gate(x, gate.to(wide(x).dtype), residual=r, impl=impl)),
        [x, residual],
        dtype,
    )
    assert_as_exact_as_eager(lambda x, impl: pool_channels(x, impl=impl), [x], dtype)


def test_they_are_the_formulas():
    x, gate, residual = inputs((2, 7, 4, 5))
    torch.testing.assert_close(position_gate(x, gate), x * gate)
    torch.testing.assert_close(position_gate(x, gate, residual=residual), F.relu(x * gate + residual))
    torch.testing.assert_close(pool_channels(x)[:, 0], x.amax(1))
    torch.testing.assert_close(pool_channels(x)[:, 1], x.mean(1))


def test_the_first_of_equal_channels_gets_the_maximums_gradient():
    x = torch.zeros(1, 9, 3, requires_grad=True)
    pool_channels(x)[:, 0].sum().backward()
    assert x.grad[0, 0].eq(1).all() and x.grad[0, 1:].eq(0).all()


def test_gradcheck():
    tensors = [x.double().requires_grad_() for x in inputs((2, 4, 3, 2))]
    assert torch.autograd.gradcheck(gating("cpp"), tensors)
    assert torch.autograd.gradcheck(lambda x: pool_channels(x, impl="cpp"), tensors[0])


def test_strides_and_stride_0_gradients():
    x, gate, _ = inputs((2, 6, 4, 5))
    twisted = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(position_gate(twisted, gate, impl="cpp"), x * gate)
    torch.testing.assert_close(pool_channels(twisted, impl="cpp"), pool_channels(x))
    leaf = x.clone().requires_grad_()
    (position_gate(leaf, gate).sum() + pool_channels(leaf)[:, 1].sum()).backward()
    torch.testing.assert_close(leaf.grad, gate.expand_as(x) + 1 / 6)


def test_channels_last_stays_so():
    x, gate, residual = inputs((2, 6, 4, 5))
    lasting = [t.contiguous(memory_format=torch.channels_last) for t in (x, residual)]
    out = position_gate(lasting[0], gate, residual=lasting[1])
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_nan_shows():
    x, gate, residual = inputs((3, 6, 40))
    x[1, 2, 7] = float("nan")
    pooled = pool_channels(x)
    assert pooled[1, :, 7].isnan().all() and int(pooled.isnan().sum()) == 2
    out = position_gate(x, gate, residual=residual)
    assert out[1, 2, 7].isnan() and int(out.isnan().sum()) == 1


@pytest.mark.parametrize("shape", [(0, 6, 4), (2, 6, 0)])
def test_empty_sizes(shape):
    actual = run(gating("cpp"), *inputs(shape))
    assert [f.shape for f in actual] == [shape, shape, (shape[0], 1, shape[2]), shape]
    assert pool_channels(torch.ones(shape)).shape == (shape[0], 2, shape[2])


def test_same_bits_on_any_number_of_threads():
    tensors = inputs((2, 64, 70, 70))
    first = run(gating("cpp"), *tensors) + run(pool_channels, tensors[0])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            again = run(gating("cpp"), *tensors) + run(pool_channels, tensors[0])
            assert all(f.equal(x) for f, x in zip(again, first, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck(dtype, with_residual):
    x, gate, residual = (t.flatten(2).to(dtype) for t in inputs((2, 6, 9)))
    gate = gate[:, 0].to(torch.promote_types(dtype, torch.float32)).contiguous()
    added = residual if with_residual else None
    check, ops = torch.library.opcheck, torch.ops.cmx_fast
    check(ops.position_gate_fwd, (x.clone().requires_grad_(), gate.clone().requires_grad_(), added))
    out = ops.position_gate_fwd(x, gate, added)
    check(ops.position_gate_bwd, (torch.randn_like(x), x, gate, out if with_residual else None))
    check(ops.pool_channels_fwd, (x.clone().requires_grad_(),))
    pooled, peak = ops.pool_channels_fwd(x)
    check(ops.pool_channels_bwd, (torch.randn_like(pooled), peak, x))


def test_compiles_without_a_graph_break():
    tensors = [x.requires_grad_() for x in inputs((2, 6, 4, 5))]

    def both(x, gate, residual):
        return position_gate(x, gate * pool_channels(x)[:, :1], residual=residual)

    torch.testing.assert_close(torch.compile(both, fullgraph=True)(*tensors), both(*tensors))


def test_second_derivatives_refuse():
    x, gate, _ = inputs((1, 2, 3))
    x.requires_grad_()
    for out in (position_gate(x, gate), pool_channels(x)):
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives; use impl='reference'"):
            grad.sum().backward()


X, GATE = torch.ones(2, 4, 3), torch.ones(2, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, GATE), {}, TypeError, r"x must be a tensor of shape \(B, C, \*\)"),
        ((X[:, :0], GATE), {}, ValueError, "x must have channels"),
        ((X, X), {}, ValueError, r"gate must have shape \(2, 1, 3\), got \(2, 4, 3\)"),
        ((X, GATE.int()), {}, TypeError, "gate must be float32"),
        ((X, GATE.to("meta")), {}, ValueError, "gate is on meta but x is on cpu"),
        ((X, GATE), {"residual": X[:1]}, ValueError, r"residual has shape \(1, 4, 3\) but x has \(2, 4, 3\)"),
        ((X, GATE), {"impl": "triton"}, ValueError, "position_gate: impl='triton' can't run here"),
    ],
)  # fmt: skip
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        position_gate(*arguments, **options)
    if arguments[0] is not X:
        with pytest.raises(error, match=message):
            pool_channels(arguments[0])
