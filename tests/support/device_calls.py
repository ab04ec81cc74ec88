"""Every operator as a call on small inputs that any device can make: what the tests of tests/device run.

Names begin with the stem of tests/kernels/test_<stem>.py, so that ``pytest -k <stem>`` selects one operator's tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import ops
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA


class Call(NamedTuple):
    """``run(*inputs)`` of one operator; ``make(dtype)`` draws the inputs, on the CPU."""

    make: Callable[[torch.dtype], list[Tensor]]
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    leaves: int  # the first of the inputs that have a gradient
    autocasts: int = 0  # the first of the inputs that autocast rounds


def unit(dtype: torch.dtype, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).to(dtype)


def maps(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape).to(dtype)


def _gate_weights(channels: int, hidden: int) -> list[Tensor]:
    return [
        torch.randn(hidden, channels),
        torch.randn(channels, hidden),
        torch.randn(hidden),
        torch.randn(channels),
    ]


def _wave(dtype: torch.dtype) -> list[Tensor]:
    bands = torch.rand(20, 129) * (torch.rand(20, 129) > 0.5)
    return [maps(torch.float32, 3, 4000), torch.hann_window(256), bands, ops.band_reach(bands)]


def _frames(dtype: torch.dtype) -> list[Tensor]:
    frames = torch.randint(0, 256, (2, 4, 3, 40, 50), dtype=torch.uint8)
    windows = torch.tensor([[3.0, 2.0, 30.0, 30.0], [0.0, 5.0, 50.0, 20.0]])
    return [frames, windows, torch.tensor([True, False]), 0.5 + torch.rand(2, 3)]


def _softmax(rows: int) -> Tensor:
    """Of unit rows: similarities above all others, weights and constants."""
    return torch.rand(3, rows) + torch.tensor([[1.0], [0.0], [0.0]])


def _in_cuda(operator: str, x: Tensor) -> str:
    """Of what takes halves alone: CUDA C++ where it can run, so that it is tried like the others."""
    built = operator in COMPILED_FOR_CUDA and x.is_cuda
    return "cuda" if built and x.dtype in (torch.bfloat16, torch.float16) else "auto"


CALLS: dict[str, Call] = {
    "info_nce-symmetric": Call(
        lambda dtype: [unit(dtype, 200, 64), unit(dtype, 200, 64), torch.tensor(20.0)],
        lambda q, k, scale: ops.info_nce(q, k, scale),
        3,
        2,
    ),
    "info_nce-bank": Call(
        lambda dtype: [
            unit(dtype, 130, 48), unit(dtype, 130, 48), unit(dtype, 300, 48), torch.tensor(20.0), torch.randperm(130),
        ],
        lambda q, k, bank, scale, target: ops.info_nce(
            q, k, scale, bank=bank.detach(), target=target, within=True, normalize=True, label_smoothing=0.1
        ),
        2,
        3,
    ),
    "info_nce_banks": Call(
        lambda dtype: [
            unit(dtype, 130, 48), unit(dtype, 130, 48), unit(dtype, 300, 48), unit(dtype, 40, 48), torch.tensor(20.0),
        ],
        lambda q, k, long, short, scale: ops.info_nce(
            q, k, scale, bank=[long.detach(), short.detach()], in_batch=False, symmetric=False, normalize=True
        ),
        2,
        4,
    ),
    "supcon": Call(
        lambda dtype: [unit(dtype, 150, 64), torch.tensor(10.0), torch.arange(150) % 7],
        lambda x, scale, labels: ops.supcon(x, labels, scale),
        2,
        1,
    ),
    "dense_scores-tokens": Call(
        lambda dtype: [
            maps(dtype, 3, 32, 7, 10), maps(dtype, 2, 70, 32), torch.rand(2, 70) < torch.rand(2, 1) + 0.1,
        ],
        lambda q, k, real: ops.dense_scores(q, k, key_mask=real, heads=2, normalize=True),
        2,
        2,
    ),
    "dense_scores-pairs": Call(
        lambda dtype: [maps(dtype, 2, 70, 24), maps(dtype, 3, 90, 24)],
        lambda q, k: ops.dense_scores(q, k, pool="max"),
        2,
        2,
    ),
    "sigmoid_contrastive": Call(
        lambda dtype: [unit(dtype, 150, 64), unit(dtype, 150, 64), torch.tensor(10.0), torch.tensor(-10.0)],
        lambda q, k, scale, bias: ops.sigmoid_contrastive(q, k, scale, bias),
        4,
        2,
    ),
    "sigmoid_contrastive-ids": Call(
        lambda dtype: [
            unit(dtype, 130, 48), unit(dtype, 90, 48), torch.tensor(10.0), torch.tensor(-10.0), torch.arange(130) % 9,
            torch.arange(90) % 11,
        ],
        lambda q, k, scale, bias, of_q, of_k: ops.sigmoid_contrastive(
            q, k, scale, bias, query_ids=of_q, key_ids=of_k, normalize=True, reduction="none"
        ),
        4,
        2,
    ),
    "softmax_block-statistics": Call(
        lambda dtype: [unit(dtype, 100, 32), unit(dtype, 70, 32), torch.tensor(10.0)],
        lambda x, y, scale: ops.block_statistics(x, y, scale),
        0,
    ),
    "softmax_block-gradients": Call(
        lambda dtype: [
            unit(dtype, 100, 32), unit(dtype, 70, 32), torch.tensor(10.0), _softmax(100), _softmax(70),
        ],
        lambda x, y, scale, rows, columns: ops.block_gradients(x, y, scale, rows, columns, need_y=True),
        0,
    ),
    "kmeans-assign": Call(
        lambda dtype: [maps(dtype, 300, 32), torch.randn(27, 32)],
        lambda x, centroids: ops.kmeans_assign(x, centroids),
        0,
    ),
    "kmeans-few": Call(
        lambda dtype: [maps(dtype, 1000, 32), torch.randn(27, 32)],
        lambda x, centroids: ops.kmeans_step(x, centroids),
        0,
    ),
    "kmeans-many": Call(
        lambda dtype: [maps(dtype, 1000, 32), torch.randn(300, 32), torch.rand(1000)],
        lambda x, centroids, weight: ops.kmeans_step(x, centroids, weight=weight, metric="cosine"),
        0,
    ),
    "kmeans-maps": Call(
        lambda dtype: [maps(dtype, 3, 32, 9, 11), torch.randn(27, 32), torch.rand(3, 9, 11)],
        lambda x, centroids, weight: ops.kmeans_step(
            x, centroids, weight=weight, normalize=True, impl=_in_cuda("kmeans", x)
        ),
        0,
    ),
    "cluster_cross_entropy": Call(
        lambda dtype: [maps(dtype, 2, 32, 9, 11), torch.randn(20, 32), torch.randint(20, (2, 9, 11)), torch.rand(20)],
        lambda x, centroids, target, weight: ops.cluster_cross_entropy(x, centroids, target=target, weight=weight)[0],
        1,
    ),
    "sparse_code": Call(
        lambda dtype: [unit(dtype, 100, 32), unit(torch.float32, 24, 32).T.contiguous()],
        lambda x, dictionary: ops.sparse_code(x, dictionary, steps=5),
        2,
        1,
    ),
    "pyramid_correlation-map": Call(
        lambda dtype: [maps(dtype, 2, 48, 3, 9, 10), torch.randn(2, 48)],
        lambda x, filters: ops.pyramid_correlation(x, filters),
        2,
    ),
    "pyramid_correlation-consistency": Call(
        lambda dtype: [torch.rand(2, 3, 9, 10), maps(dtype, 2, 48, 3, 9, 10), torch.randn(2, 48)],
        lambda prediction, x, filters: ops.attention_consistency(x, filters, prediction),
        1,
    ),
    "attention": Call(
        lambda dtype: [maps(dtype, 2, 130, 24), maps(dtype, 2, 70, 24), maps(dtype, 2, 70, 96)],
        lambda q, k, v: ops.attention(q, k, v),
        3,
        3,
    ),
    "gates-channel": Call(
        lambda dtype: [maps(dtype, 2, 16, 9, 11), maps(dtype, 2, 16, 9, 11), *_gate_weights(16, 4)],
        lambda x, residual, w1, w2, b1, b2: ops.channel_gate(x, w1, w2, b1, b2, maximum=True, residual=residual),
        6,
    ),
    "gates-position": Call(
        lambda dtype: [maps(dtype, 2, 16, 9, 11), torch.rand(2, 1, 9, 11), maps(dtype, 2, 16, 9, 11)],
        lambda x, gate, residual: ops.position_gate(x, gate, residual=residual),
        3,
    ),
    "gates-pool": Call(lambda dtype: [maps(dtype, 2, 16, 9, 11)], lambda x: ops.pool_channels(x), 1),
    "band_spectrogram": Call(
        _wave,
        lambda wave, window, bands, reach: ops.band_spectrogram(
            wave, window, bands, n_fft=256, hop=80, reach=reach, logarithm="natural", floor=1e-10
        ),
        0,
    ),
    "prepare_frames": Call(
        _frames,
        lambda frames, boxes, flip, jitter: ops.prepare_frames(
            frames, boxes, size=24, flip=flip, jitter=jitter, mean=0.45, std=0.225
        ),
        0,
    ),
    "warp_and_mask": Call(
        lambda dtype: [
            maps(dtype, 2, 20, 30), torch.sort(29 * torch.rand(2, 30)).values, torch.rand(2, 20) > 0.8,
            torch.rand(2, 30) > 0.8,
        ],
        lambda x, position, bands, frames: ops.warp_and_mask(x, position, bands, frames),
        0,
    ),
}  # fmt: skip


def inputs(
    name: str, device: torch.device | str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """The call's inputs on a device: the same for every device."""
    torch.manual_seed(seed)
    return [x.to(device) for x in CALLS[name].make(dtype)]


def step(
    name: str, tensors: list[Tensor], run: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
) -> tuple[Tensor, ...]:
    """Results and gradients of one call, or of ``run`` in its place; the upstream gradient differs by element."""
    call = CALLS[name]
    leaves = [x.detach().requires_grad_() for x in tensors[: call.leaves]]
    results = (run or call.run)(*leaves, *tensors[call.leaves :])
    results = results if isinstance(results, tuple) else (results,)
    if not leaves:
        return results
    (out,) = results
    pull = torch.linspace(0.5, 1.5, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)
    return out.detach(), *torch.autograd.grad(out, leaves, pull)


def bits(results: tuple[Tensor, ...]) -> list[Tensor]:
    """The results as bytes, by which NaN equals itself."""
    return [x.detach().reshape(-1).contiguous().view(torch.uint8).clone() for x in results]


def same_bits(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """True if all results are equal to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


def distance(actual: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; absolute where the truth vanishes."""
    actual, truth = actual.double(), truth.double().to(actual.device)
    size = truth.norm().item()
    return (actual - truth).norm().item() / (size if size > 1e-12 else 1.0)
