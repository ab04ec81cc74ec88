"""The launchers of both gates and of the pooling against float64 truth."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels.channel_gate import channel_gate_bwd, channel_gate_fwd
from cmx_fast.kernels.position_gate import (
    pool_channels_bwd,
    pool_channels_fwd,
    position_gate_bwd,
    position_gate_fwd,
)

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SIZES = [(1, 1, 1, 1), (2, 5, 9, 2), (3, 70, 49, 4), (2, 3, 2100, 1), (1, 130, 40, 8)]


def assert_near(actual, truth, dtype):
    assert (actual.cpu().double() - truth).norm() <= TOLERANCE[dtype] * truth.norm().clamp_min(1e-6)


def truth_of(function, tensors, pull):
    leaves = [x.double().requires_grad_() for x in tensors]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad((out * pull.double()).sum(), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "c", "p", "h"), SIZES)
@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_channel_gate(device, b, c, p, h, dtype, maximum, with_residual):
    x, residual, pull = (torch.randn(b, c, p).to(dtype) for _ in range(3))
    weights = torch.randn(h, c) / c**0.5, torch.randn(h), torch.randn(c, h) / h**0.5, torch.randn(c)

    def exact(x, w1, b1, w2, b2, *residual):
        return reference.channel_gate(
            x, w1, w2, b1, b2, maximum=maximum, residual=residual[0] if residual else None
        )

    more = [residual] if with_residual else []
    expected, dx, *dweights = truth_of(exact, [x, *weights, *more], pull)
    on_device = [t.to(device) for t in (x, *weights)]
    added = residual.to(device) if with_residual else None
    out, pooled, hidden, gate, peak = channel_gate_fwd(on_device[0], added, *on_device[1:], maximum)
    result = channel_gate_bwd(
        pull.to(device),
        on_device[0],
        out if with_residual else None,
        on_device[1],
        on_device[3],
        hidden,
        gate,
        peak,
    )
    assert out.dtype == result[0].dtype == dtype
    assert_near(out, expected, dtype)
    assert_near(result[0], dx, dtype)
    if with_residual:
        assert_near(result[1], dweights[-1], dtype)
    else:
        assert result[1].numel() == 0
    assert_near(result[2].flatten(0, 1).T @ pooled.flatten(0, 1), dweights[0], dtype)
    assert_near(result[2].sum((0, 1)), dweights[1], dtype)
    assert_near(result[3].T @ hidden.sum(1), dweights[2], dtype)
    assert_near(result[3].sum(0) * hidden.shape[1], dweights[3], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "c", "p", "_"), SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_position_gate_and_pooling(device, b, c, p, _, dtype, with_residual):
    x, residual, pull = (torch.randn(b, c, p).to(dtype) for _ in range(3))
    gate = torch.rand(b, 1, p)

    def exact(x, gate, *residual):
        return reference.position_gate(x, gate, residual=residual[0] if residual else None)

    more = [residual] if with_residual else []
    expected, *gradients = truth_of(exact, [x, gate, *more], pull)
    on_device, flat = x.to(device), gate[:, 0].to(device)
    out = position_gate_fwd(on_device, flat, residual.to(device) if with_residual else None)
    dx, dgate, dresidual = position_gate_bwd(pull.to(device), on_device, flat, out if with_residual else None)
    actual = [out, dx, dgate[:, None]] + ([dresidual] if with_residual else [])
    for f, right in zip(actual, [expected, *gradients], strict=True):
        assert_near(f, right, dtype)

    pulls = torch.randn(b, 2, p)
    expected, dx = truth_of(reference.pool_channels, [x], pulls)
    pooled, peak = pool_channels_fwd(on_device)
    assert_near(pooled, expected, torch.float32)
    assert_near(pool_channels_bwd(pulls.to(device), peak, on_device), dx, dtype)


def test_nan_shows(device):
    x = torch.randn(2, 20, 70, device=device)
    x[1, 3, 5] = float("nan")
    pooled, _ = pool_channels_fwd(x)
    assert pooled[1, :, 5].isnan().all() and int(pooled.isnan().sum()) == 2
    weights = [torch.randn(*size, device=device) for size in ((4, 20), (4,), (20, 4), (20,))]
    for maximum in (False, True):
        out, *_ = channel_gate_fwd(x, None, *weights, maximum)
        assert out[1].isnan().all() and out[0].isfinite().all()


def test_launches(device, count_launches):
    x = torch.randn(2, 20, 70, device=device)
    weights = [torch.randn(*size, device=device) for size in ((4, 20), (4,), (20, 4), (20,))]
    with count_launches() as count:
        out, _, hidden, gate, peak = channel_gate_fwd(x, x, *weights, True)
        channel_gate_bwd(x, x, out, weights[0], weights[2], hidden, gate, peak)
    assert count.launches == 4
    with count_launches() as count:
        pooled, peak = pool_channels_fwd(x)
        pool_channels_bwd(pooled, peak, x)
        out = position_gate_fwd(x, pooled[:, 0], x)
        position_gate_bwd(x, x, pooled[:, 0].contiguous(), out)
    assert count.launches == 4


@pytest.mark.parametrize("size", [(0, 5, 7), (2, 5, 0)])
def test_empty_sizes(device, size):
    x = torch.randn(size, device=device)
    pooled, peak = pool_channels_fwd(x)
    assert pool_channels_bwd(pooled, peak, x).shape == x.shape
    gate = torch.ones(size[0], size[2], device=device)
    assert position_gate_fwd(x, gate, None).shape == x.shape
    assert position_gate_bwd(x, x, gate, None)[1].shape == gate.shape


def test_double_is_refused(device):
    with pytest.raises(TypeError, match="take float32, bfloat16 or float16, got torch.float64"):
        pool_channels_fwd(torch.randn(1, 2, 3, dtype=torch.float64, device=device))
