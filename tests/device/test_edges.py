"""Low temperatures, zero vectors, NaN and bad targets: on a GPU numbers that show them, and never a host sync."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from device_calls import CALLS, distance, inputs, step, unit

from cmx_fast import ops

NAN = float("nan")
SCALES = [20.0, 200.0]  # temperatures of 0.05 and 0.005


@contextmanager
def no_waiting(device):
    """Raises where the host waits for a GPU; nothing on the CPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_waiting_is_found(cuda):
    """Else the tests below would prove nothing."""
    x = torch.ones(3, device=cuda)
    with no_waiting(cuda), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


@pytest.mark.parametrize("name", CALLS)
def test_never_waits_for_the_device(cuda, name):
    tensors = inputs(name, cuda)
    step(name, tensors)  # compiles, for which a module is loaded
    with no_waiting(cuda):
        step(name, tensors)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["info_nce", "supcon"])
def test_low_temperatures(device, name, dtype, scale):
    """Loss and gradients against float64's on the same rows; the pairs are near enough for a loss at a scale of 200."""
    n, d = 192, 64
    x = unit(torch.float32, n, d)
    y = torch.nn.functional.normalize(x + 0.1 * torch.randn(n, d) / d**0.5, dim=-1)
    tensors = [t.to(dtype) for t in (x, y)]
    labels = torch.arange(n) % 60

    def run(place, dtype, impl):
        rows, others = leaves = [t.to(place, dtype).requires_grad_() for t in tensors]
        if name == "supcon":
            value = ops.supcon(torch.cat(leaves), torch.cat([labels, labels]).to(place), scale, impl=impl)
        else:
            value = ops.info_nce(rows, others, scale, impl=impl)
        return value, *torch.autograd.grad(value, leaves)

    found, truth = run(device, dtype, "auto"), run("cpu", torch.float64, "reference")
    assert all(x.isfinite().all() for x in found)
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for f, t in zip(found, truth, strict=True):
        assert distance(f, t) < limit


@pytest.mark.parametrize("name", CALLS)
def test_zero_vectors_stay_finite(device, name):
    if name == "kmeans-many":
        pytest.skip(
            "the cosine of a zero vector is refused on the CPU and NaN on a GPU: tests/kernels/test_kmeans.py"
        )
    tensors = inputs(name, device)
    first = 1 if name == "pyramid_correlation-consistency" else 0
    tensors[first] = tensors[first].clone()
    tensors[first][0] = 0
    assert all(x.isfinite().all() for x in step(name, tensors))


@pytest.mark.parametrize("name", CALLS)
def test_nan_shows(device, name):
    tensors = inputs(name, device)
    if name == "prepare_frames":
        if device.type == "cpu":
            pytest.skip("refused on the CPU: tests/ops/test_prepare_frames.py")
        tensors[3] = tensors[3].clone()
        tensors[3][0] = NAN
    else:
        tensors[0] = tensors[0].clone()
        tensors[0][0] = NAN
    with no_waiting(device):
        results = CALLS[name].run(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    assert any(x.isnan().any() for x in results if x.is_floating_point())


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
@pytest.mark.parametrize("weighted", [False, True])
def test_cluster_cross_entropy_of_a_target_out_of_range(device, wrong, weighted):
    x, centroids = torch.randn(6, 8, device=device), torch.randn(5, 8, device=device)
    target = torch.tensor([0, 1, wrong, 3, 4, 0], device=device)
    weight = torch.ones(5, device=device) if weighted else None
    if device.type == "cpu":
        with pytest.raises(ValueError, match="target must lie in"):
            ops.cluster_cross_entropy(x, centroids, target=target, weight=weight)
        return
    with no_waiting(device):
        loss, _ = ops.cluster_cross_entropy(x, centroids, target=target, weight=weight)
    assert loss.isnan()


@pytest.mark.parametrize("wrong", [-1, 6, 2**40])
def test_info_nce_of_a_target_out_of_range(device, wrong):
    query, key = (unit(torch.float32, 6, 16).to(device) for _ in range(2))
    target = torch.tensor([1, 0, wrong, 3, 5, 4], device=device)
    for symmetric in (False, True):
        if device.type == "cpu":
            with pytest.raises(ValueError, match="target"):
                ops.info_nce(query, key, target=target, symmetric=symmetric)
            continue
        leaf = query.clone().requires_grad_()
        with no_waiting(device):
            loss = ops.info_nce(leaf, key, target=target, symmetric=symmetric, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), [leaf])
        assert loss[2].isnan() and gradient[2].isnan().any()


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, math.inf])
@pytest.mark.parametrize("name", ["info_nce", "supcon"])
def test_a_scale_that_is_no_temperature(device, name, scale):
    x, labels = unit(torch.float32, 6, 16).to(device), torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    tensor = torch.tensor(scale, device=device)

    def loss():
        return ops.info_nce(x, x.flip(0), tensor) if name == "info_nce" else ops.supcon(x, labels, tensor)

    if device.type == "cpu" and scale != math.inf:
        with pytest.raises(ValueError, match="logit_scale must be positive"):
            loss()
        return
    with no_waiting(device):
        value = loss()
    assert value.isnan()
