"""How often an operator launches, that it never waits for the device, and that autocast does not reach into it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

aten = torch.ops.aten
#: What reads a tensor's values, or needs them to know a shape.
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.unique_consecutive.default, aten._unique2.default, aten.repeat_interleave.Tensor,
}  # fmt: skip


INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class NoWaiting(TorchDispatchMode):
    """Fails at an operation for which a GPU would have to finish all that was queued before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function not in WAITS, f"{function} waits for the device"
        if function in INDEXED:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, "indexing with a mask waits for the device"
        return function(*args, **kwargs)


class NothingHalved(TorchDispatchMode):
    """Fails at a result in two bytes: of float32 inputs only autocast makes one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        halves = torch.bfloat16, torch.float16
        assert not (isinstance(result, Tensor) and result.dtype in halves), f"autocast rounds {function}"
        return result


def features(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def info_nce(*, symmetric=True, normalize=False, targets=False, in_batch=True, banks=0, cache=False):
    def call(device):
        from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

        x, y = features(1, 128, 32).to(device), features(1, 128, 32).to(device)
        target = torch.arange(128, device=device).flip(0)[None] if targets else None
        bank, scale = [features(64, 32).to(device) for _ in range(banks)], torch.ones((), device=device)
        options = in_batch, False, "dot", symmetric, normalize, 0.0
        _, *saved = info_nce_fwd(x, y, scale, bank, target, *options, cache)
        grad = torch.ones(1, 128, device=device)
        info_nce_bwd(grad, x, y, scale, bank, target, *options, *saved, True, True)

    return call


def supcon(*, normalize=False, references=False):
    def call(device):
        from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd

        x, scale = features(128, 32).to(device), torch.ones((), device=device)
        labels = (torch.arange(128) % 7).to(device)
        columns = (x[:50], labels[:50]) if references else (None, None)
        inputs = x, labels, scale, *columns, normalize
        _, *saved = supcon_fwd(*inputs, False)
        supcon_bwd(torch.ones(128, device=device), *inputs, *saved, True, references)

    return call


def sigmoid_contrastive(*, normalize=False, summed=True):
    def call(device):
        from cmx_fast.kernels.sigmoid_contrastive.launchers import (
            sigmoid_contrastive_bwd,
            sigmoid_contrastive_fwd,
        )

        x, y = features(1, 128, 32).to(device), features(1, 128, 32).to(device)
        numbers = torch.ones((), device=device), torch.zeros((), device=device)
        inputs = x, y, *numbers, None, None, normalize, summed
        loss, *saved = sigmoid_contrastive_fwd(*inputs, True, True)
        sigmoid_contrastive_bwd(torch.ones_like(loss), *inputs, *saved, True, True)

    return call


def softmax_block(device):
    from cmx_fast.kernels.softmax_block import softmax_block_bwd, softmax_block_fwd

    x, y, scale = features(128, 32).to(device), features(64, 32).to(device), torch.ones((), device=device)
    statistics = softmax_block_fwd(x, y, scale, None, "dot")
    softmax = torch.stack([statistics[0], torch.ones_like(statistics[0]), torch.zeros_like(statistics[0])])
    softmax_block_bwd(x, y, scale, None, "dot", softmax, None, True, True)


def kmeans(clusters):
    def call(device):
        from cmx_fast.kernels.kmeans.launchers import kmeans_step

        x = features(1, 512, 32).to(device)
        kmeans_step(x, features(clusters, 32).to(device), torch.ones(1, 512, device=device), "l2", True)

    return call


def cluster_cross_entropy(device):
    from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd

    x, centroids = features(1, 256, 32).to(device), features(20, 32).to(device)
    losses, lse, labels = cluster_cross_entropy_fwd(x, centroids, None, True)
    cluster_cross_entropy_bwd(losses, x, centroids, labels, lse, True)


def sparse_code(device):
    from cmx_fast.kernels.sparse_code import sparse_code_bwd, sparse_code_fwd

    x, dictionary = features(1, 64, 16).to(device), features(16, 16).to(device)
    step = torch.full((), 0.01, device=device)
    codes = sparse_code_fwd(x, dictionary, step, 0.1, 3)
    sparse_code_bwd(codes, x, dictionary, step, 0.1, 3)


def pyramid_correlation(device):
    from cmx_fast.kernels.pyramid_correlation.launchers import (
        pyramid_correlation_bwd,
        pyramid_correlation_fwd,
    )

    maps, filters = torch.randn(2, 32, 4, 8, 8).to(device), torch.randn(2, 32).to(device)
    attention, *kept = pyramid_correlation_fwd(maps, filters, 2, "cosine")
    pyramid_correlation_bwd(torch.ones_like(attention), maps, filters, attention, *kept, 2, "cosine")


def attention_consistency(device):
    from cmx_fast.kernels.pyramid_correlation.launchers import attention_consistency_fwd

    maps, filters = torch.randn(2, 32, 4, 8, 8).to(device), torch.randn(2, 32).to(device)
    attention_consistency_fwd(maps, filters, torch.rand(2, 4, 8, 8).to(device), 2, "cosine")


def attention(device):
    from cmx_fast.kernels.attention import attention_bwd, attention_fwd

    query, key, value = (torch.randn(1, 64, 16).to(device) for _ in range(3))
    out, lse = attention_fwd(query, key, value, 1.0)
    attention_bwd(out, query, key, value, lse, 1.0, True, True, True)


def dense_scores(pool):
    def call(device):
        from cmx_fast.kernels.dense_scores.launchers import dense_scores_bwd, dense_scores_fwd

        query, key = torch.randn(2, 20, 16).to(device), torch.randn(3, 10, 16).to(device)
        tensors = query, key, None, torch.ones(3, 10, dtype=torch.bool, device=device)
        scores, *kept = dense_scores_fwd(*tensors, pool, 2, True, True)
        dense_scores_bwd(scores, *tensors, *kept, pool, 2, True, True, True)

    return call


def channel_gate(device):
    from cmx_fast.kernels.channel_gate import channel_gate_bwd, channel_gate_fwd

    x = torch.randn(2, 16, 64).to(device)
    weights = [
        w.to(device) for w in (torch.randn(4, 16), torch.randn(4), torch.randn(16, 4), torch.randn(16))
    ]
    out, _, hidden, gate, peak = channel_gate_fwd(x, x, *weights, False)
    channel_gate_bwd(x, x, out, weights[0], weights[2], hidden, gate, peak)


def position_gate(device):
    from cmx_fast.kernels.position_gate import position_gate_bwd, position_gate_fwd

    x, gate = torch.randn(2, 16, 64).to(device), torch.rand(2, 64).to(device)
    out = position_gate_fwd(x, gate, x)
    position_gate_bwd(x, x, gate, out)


def pool_channels(device):
    from cmx_fast.kernels.position_gate import pool_channels_bwd, pool_channels_fwd

    x = torch.randn(2, 16, 64).to(device)
    pooled, peak = pool_channels_fwd(x)
    pool_channels_bwd(pooled, peak, x)


def band_spectrogram(device):
    from cmx_fast.kernels.band_spectrogram import band_spectrogram_fwd

    bands, reach = torch.ones(5, 33).to(device), torch.tensor([[0, 33]] * 5, dtype=torch.int32).to(device)
    wave, window = torch.randn(2, 500).to(device), torch.ones(64).to(device)
    band_spectrogram_fwd(wave, window, bands, reach, None, None, 14, 64, 32, False, 0.97, True, 1, 1e-10)


def warp_and_mask(device):
    from cmx_fast.kernels.warp_and_mask import warp_and_mask_fwd

    hidden = (torch.zeros(2, n, dtype=torch.bool, device=device) for n in (5, 9))
    warp_and_mask_fwd(torch.ones(2, 5, 9, device=device), torch.ones(2, 9, device=device), *hidden)


#: Triton launches of forward and backward together, at sizes that one wave of programs covers. Four are the aim. To
#: normalise, norms are measured in each pass (for supcon in the first, for halves in place); with targets or references
#: the two sides' matrix kernels differ.
LAUNCHES = {
    info_nce(): 4,
    info_nce(symmetric=False): 5,
    info_nce(symmetric=False, in_batch=False, banks=2): 4,
    info_nce(symmetric=False, in_batch=False, banks=2, cache=True): 3,
    info_nce(symmetric=False, in_batch=False, banks=2, cache=True, normalize=True): 3,
    info_nce(normalize=True): 6,
    info_nce(targets=True): 8,
    supcon(): 4,
    supcon(normalize=True): 5,
    supcon(normalize=True, references=True): 6,
    sigmoid_contrastive(): 4,
    sigmoid_contrastive(normalize=True, summed=False): 6,
    softmax_block: 3,
    kmeans(27): 3,
    kmeans(1000): 4,
    cluster_cross_entropy: 4,
    sparse_code: 2,
    pyramid_correlation: 4,
    attention_consistency: 2,
    attention: 3,
    dense_scores("mean"): 3,
    dense_scores("max"): 3,
    channel_gate: 4,
    position_gate: 2,
    pool_channels: 2,
    band_spectrogram: 2,
    warp_and_mask: 1,
}


@pytest.mark.parametrize(
    ("call", "launches"), LAUNCHES.items(), ids=lambda value: getattr(value, "__qualname__", None)
)
def test_launches_waits_and_products(device, count_launches, call, launches):
    # An operator's inputs are rounded before it is called; its own products are float32's, also under autocast.
    with count_launches() as count, torch.autocast(device.type, torch.bfloat16), NoWaiting(), NothingHalved():
        call(device)
    assert count.launches == launches
