"""More than 2^31 elements or products: rows that lie beyond are what they are alone.

On the CPU the same at small sizes, so that the truths themselves are tried where there is no GPU.
"""

from __future__ import annotations

import pytest
import torch
from device_calls import distance, unit
from torch import Tensor

from cmx_fast import ops, reference

GIB = 2**30


def sizes(device: torch.device, small: int, large: int, gib: float) -> int:
    """The large size on a GPU with so much memory free, the small one on the CPU."""
    if device.type == "cpu":
        return small
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib:.0f} GiB of free GPU memory, there are {free:.0f}")
    return large


def some(n: int) -> list[int]:
    """The first, one in the middle, and the last."""
    return [0, n // 2, n - 1]


def test_info_nce(device):
    """2^31.2 pairs; loss and gradients of both sides in float64, a block of rows at a time."""
    n, scale = sizes(device, 300, 49_000, 4), 10.0
    query, key = (unit(torch.float32, n, 16).to(device) for _ in range(2))
    leaves = [x.clone().requires_grad_() for x in (query, key)]
    losses = ops.info_nce(*leaves, scale, symmetric=False, reduction="none")
    gradients = torch.autograd.grad(losses.sum(), leaves)
    q, k = query.double(), key.double()
    log_sums = torch.cat([(scale * rows @ k.T).logsumexp(1) for rows in q.split(2048)])
    truth = log_sums - scale * (q * k).sum(1)
    assert distance(losses.detach(), truth) < 1e-6
    rows = torch.tensor(some(n), device=device)
    of_queries = torch.softmax(scale * q[rows] @ k.T, 1)
    assert distance(gradients[0][rows], scale * (of_queries @ k - k[rows])) < 1e-5
    of_keys = torch.exp(scale * q @ k[rows].T - log_sums[:, None])
    assert distance(gradients[1][rows], scale * (of_keys.T @ q - q[rows])) < 1e-5


def test_supcon(device):
    n, scale, classes = sizes(device, 300, 49_000, 4), 10.0, 50
    x = unit(torch.float32, n, 16).to(device)
    labels = torch.arange(n, device=device) % classes
    losses = ops.supcon(x, labels, scale, reduction="none")
    rows, wide = torch.tensor(some(n), device=device), x.double()
    logits = scale * wide[rows] @ wide.T
    logits[range(3), rows] = float("-inf")
    same = labels[rows][:, None] == labels[None, :]
    same[range(3), rows] = False
    mean = torch.where(same, logits, 0.0).sum(1) / same.sum(1)
    assert distance(losses[rows], logits.logsumexp(1) - mean) < 1e-6


def test_attention(device):
    batch, n = 2, sizes(device, 100, 33_000, 4)
    tensors = [torch.randn(batch, n, width, device=device) for width in (16, 16, 32)]
    found = ops.attention(*tensors)
    rows = some(n)
    query, key, value = (x.double() for x in tensors)
    truth = reference.attention(query[:, rows], key, value, scale=16**-0.5)
    assert distance(found[:, rows], truth) < 1e-5


def test_kmeans(device):
    """2^31.2 numbers in x, the clusters' sums among them."""
    n = sizes(device, 1000, 2**25, 30)
    x = torch.empty(n, 72, dtype=torch.bfloat16, device=device).normal_()
    centroids = torch.randn(5, 72, device=device)
    labels, sums, counts, inertia = ops.kmeans_step(x, centroids)
    tail = slice(n - 500, n)
    assert torch.equal(labels[tail], reference.kmeans_assign(x[tail].double(), centroids.double())[0])
    truth = torch.zeros(5, 72, dtype=torch.float64, device=device)
    for rows, places in zip(x.split(2**20), labels.split(2**20)):
        truth.index_add_(0, places, rows.double())
    assert distance(sums, truth) < 1e-6
    assert torch.equal(counts, labels.bincount(minlength=5)) and inertia.isfinite()


def samples(found: Tensor, truth_of, count: int, tolerance: float) -> None:
    """Compare some samples with what is computed of each alone."""
    for b in some(count):
        assert distance(found[b : b + 1], truth_of(slice(b, b + 1))) < tolerance, f"sample {b} of {count}"


def test_pyramid_correlation(device):
    batch = sizes(device, 3, 66, 40)
    shape = (512, 4, 128, 128) if device.type == "cuda" else (8, 2, 8, 8)
    features = torch.empty(batch, *shape, dtype=torch.bfloat16, device=device).normal_().requires_grad_()
    filters = torch.randn(batch, shape[0], device=device)
    found = ops.pyramid_correlation(features, filters)
    (gradient,) = torch.autograd.grad(found, [features], torch.ones_like(found))

    def alone(which):
        leaf = features[which].detach().double().requires_grad_()
        out = reference.pyramid_correlation(leaf, filters[which].double())
        return out.detach(), *torch.autograd.grad(out, [leaf], torch.ones_like(out))

    samples(found.detach(), lambda which: alone(which)[0], batch, 1e-5)
    samples(gradient, lambda which: alone(which)[1], batch, 1e-2)


@pytest.mark.parametrize("gate", ["channel", "position"])
def test_gates(device, gate):
    batch, c = sizes(device, 3, 260, 40), 128
    side = 256 if device.type == "cuda" else 8
    x = torch.empty(batch, c, side, side, dtype=torch.bfloat16, device=device).normal_().requires_grad_()
    if gate == "channel":
        weights = [torch.randn(size, device=device) / 4 for size in ((16, c), (c, 16), (16,), (c,))]
        found = ops.channel_gate(x, *weights)
    else:
        weights = [torch.rand(batch, 1, side, side, device=device)]
        found = ops.position_gate(x, *weights)
    (gradient,) = torch.autograd.grad(found, [x], torch.ones_like(found))

    def alone(which):
        leaf = x[which].detach().double().requires_grad_()
        if gate == "channel":
            out = reference.channel_gate(leaf, *(w.double() for w in weights))
        else:
            out = reference.position_gate(leaf, weights[0][which].double())
        return out.detach(), *torch.autograd.grad(out, [leaf], torch.ones_like(out))

    samples(found.detach(), lambda which: alone(which)[0], batch, 1e-2)
    samples(gradient, lambda which: alone(which)[1], batch, 1e-2)


def test_gates_pool(device):
    batch, side = sizes(device, 3, 260, 30), 256 if device.type == "cuda" else 8
    x = torch.empty(batch, 128, side, side, dtype=torch.bfloat16, device=device).normal_()
    samples(ops.pool_channels(x), lambda which: reference.pool_channels(x[which].double()), batch, 1e-5)


def test_prepare_frames(device):
    """Both the frames and the views: 2^31.1 and 2^31.0 numbers."""
    clips = sizes(device, 3, 450, 20)
    count, side = (32, 226) if device.type == "cuda" else (2, 20)
    frames = torch.randint(256, (clips, count, 3, side, side), dtype=torch.uint8, device=device)
    windows = torch.tensor([[1.0, 2.0, side - 3, side - 4]], device=device).expand(clips, 4)
    options = {"size": 224 if device.type == "cuda" else 16, "mean": 0.45, "std": 0.225}
    found = ops.prepare_frames(frames, windows, **options, dtype=torch.bfloat16)

    def alone(which):
        options_of_one = options | {"mean": [0.45] * 3, "std": [0.225] * 3}
        side = options_of_one.pop("size")
        return reference.prepare_frames(
            frames[which], windows[which], size=[side, side], dtype=torch.float64, **options_of_one
        )

    samples(found, alone, clips, 1e-2)


def test_warp_and_mask(device):
    batch, bands, frames = sizes(device, 3, 1100, 30), 128, 16_000 if device.type == "cuda" else 30
    x = torch.empty(batch, bands, frames, dtype=torch.bfloat16, device=device).normal_()
    position = torch.rand(batch, frames, device=device).sort(1).values * (frames - 1)
    hidden = [torch.rand(batch, size, device=device) > 0.9 for size in (bands, frames)]
    found = ops.warp_and_mask(x, position, *hidden)
    samples(
        found,
        lambda which: reference.warp_and_mask(
            x[which].double(), position[which].double(), *(h[which] for h in hidden)
        ),
        batch,
        1e-2,
    )
