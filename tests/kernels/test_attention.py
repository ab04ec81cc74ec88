"""The launchers of attention against float64 truth."""

from __future__ import annotations

import pytest
import torch

from cmx_fast import reference

pytest.importorskip("triton")
from cmx_fast.kernels.attention import attention_bwd, attention_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def check(device, dtype, b, n, m, d, e, scale, tolerance=None):
    inputs = [torch.randn(*size).to(dtype) for size in ((b, n, d), (b, m, d), (b, m, e))]
    grad = torch.randn(b, n, e).to(dtype)
    on_device = [x.to(device) for x in inputs]
    out, stats = attention_fwd(*on_device, scale)
    gradients = attention_bwd(grad.to(device), *on_device, stats, scale, True, True, True)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = reference.attention(*exact, scale=scale)
    truth = torch.autograd.grad((expected * grad.double()).sum(), exact)
    for actual, right in zip((out, *gradients), (expected.detach(), *truth), strict=True):
        assert actual.dtype == dtype
        error = (actual.cpu().double() - right).norm()
        assert error <= (tolerance or TOLERANCE[dtype]) * right.norm().clamp_min(1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("b", "n", "m", "d", "e"),
    [(1, 1, 1, 1, 1), (2, 70, 130, 17, 40), (1, 65, 63, 64, 200), (3, 10, 100, 130, 3), (1, 128, 64, 16, 64)],
)
def test_outputs_and_gradients(device, b, n, m, d, e, dtype):
    check(device, dtype, b, n, m, d, e, 0.3)


def test_large_scores_stay_finite(device):
    # The products' own rounding, times scores of about 200.
    check(device, torch.float32, 1, 40, 90, 8, 5, 20.0, tolerance=1e-5)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_needed(device, count_launches, wanted):
    q, k, v, grad = (torch.randn(1, 20, 8, device=device) for _ in range(4))
    _, stats = attention_fwd(q, k, v, 1.0)
    whole = attention_bwd(grad, q, k, v, stats, 1.0, True, True, True)
    with count_launches() as count:
        actual = attention_bwd(grad, q, k, v, stats, 1.0, *wanted)
    assert count.launches == (1 if wanted[2] else 2)  # dvalue needs no mean slopes
    for x, right, on_device in zip(actual, whole, wanted, strict=True):
        assert x.equal(right) if on_device else x.numel() == 0


def test_launches(device, count_launches):
    q, k, v = (torch.randn(1, 20, 8, device=device) for _ in range(3))
    with count_launches() as count:
        out, stats = attention_fwd(q, k, v, 1.0)
    assert count.launches == 1
    with count_launches() as count:
        attention_bwd(torch.randn_like(out), q, k, v, stats, 1.0, True, True, True)
    assert count.launches == 2


@pytest.mark.parametrize(("n", "m", "e"), [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_empty_sizes(device, n, m, e):
    q, k, v = (torch.randn(2, *size, device=device) for size in ((n, 6), (m, 6), (m, e)))
    out, stats = attention_fwd(q, k, v, 1.0)
    assert out.shape == (2, n, e) and (m or out.eq(0).all())
    gradients = attention_bwd(torch.randn_like(out), q, k, v, stats, 1.0, True, True, True)
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]
    assert all(g.isfinite().all() for g in gradients)


def test_nan_shows(device):
    q, k, v = (torch.randn(1, 70, 8, device=device) for _ in range(3))
    q[0, 5, 0] = float("nan")
    out, stats = attention_fwd(q, k, v, 1.0)
    assert out[0, 5].isnan().all() and stats[0, 1, 5].isnan()
    assert out[0, [0, 4, 6, 69]].isfinite().all()


def test_double_is_refused(device):
    q = torch.randn(1, 4, 8, dtype=torch.float64, device=device)
    with pytest.raises(TypeError, match="take float32, bfloat16 or float16, got torch.float64"):
        attention_fwd(q, q, q, 1.0)
