"""Every operator, layer and loss as a module, with inputs for any batch and any number of positions.

What has to hold at every size or under every transform is tested over this one list: tests/test_dynamic_shapes.py,
tests/test_transforms.py. A test there says whether a public name is missing.
"""

from __future__ import annotations

import torch
from sized import Sized, maps, of, rows
from sized_layers import LAYERS
from torch import Tensor, nn

from cmx_fast import losses, ops
from cmx_fast import nn as nn_package
from cmx_fast.nn import attention


def _gate(x: Tensor, hidden: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return ops.channel_gate(x, hidden, gate, maximum=True, residual=residual)


class _Banked(nn.Module):
    """MoCo's loss, whose bank is a buffer of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = losses.NTXentLoss(memory_bank_size=(40, 24))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.loss(one, other)


CALLS: dict[str, Sized] = {
    "info_nce": Sized("ops.info_nce", of(lambda q, k: ops.info_nce(q, k, 5.0, normalize=True)), rows, 2),
    "info_nce-options": Sized(
        "ops.info_nce",
        of(
            lambda q, k, bank, target, scale: ops.info_nce(
                q, k, scale, bank=[bank], target=target, within=True, normalize=True, label_smoothing=0.1
            )
        ),
        lambda b, n: (*rows(b, n), torch.randn(n, 24), torch.randperm(b), torch.tensor(5.0)),
        2,
    ),
    "info_nce-batched": Sized(
        "ops.info_nce",
        of(lambda q, k: ops.info_nce(q, k, 5.0, symmetric=False, reduction="none", similarity="sql2")),
        lambda b, n: (torch.randn(b, n, 8), torch.randn(b, n, 8)),
        2,
    ),
    "info_nce-moco": Sized(
        "ops.info_nce",
        of(lambda q, k, bank: ops.info_nce(q, k, 5.0, bank=bank, in_batch=False, symmetric=False)),
        lambda b, n: (*rows(b, n), torch.randn(n, 24)),
        2,
    ),
    "supcon": Sized(
        "ops.supcon",
        of(lambda x, y: ops.supcon(x, y, 5.0, normalize=True)),
        lambda b, n: (torch.randn(b, 24), torch.arange(b) % 3),
    ),
    "supcon-columns": Sized(
        "ops.supcon",
        of(lambda x, r, y, of_r: ops.supcon(x, y, ref_features=r, ref_labels=of_r, reduction="sum")),
        lambda b, n: (torch.randn(b, 24), torch.randn(n, 24), torch.arange(b) % 3, torch.arange(n) % 3),
        2,
    ),
    "dense_scores": Sized(
        "ops.dense_scores",
        of(lambda q, k, real: ops.dense_scores(q, k, key_mask=real, heads=2, normalize=True)),
        lambda b, n: (torch.randn(b, 8, n, n), torch.randn(5, n, 8), torch.arange(n) <= torch.arange(5)[:, None]),
        2,
    ),
    "dense_contrastive": Sized(
        "ops.dense_contrastive",
        of(lambda q, k: ops.dense_contrastive(q, k, 5.0, pool="sum_max", reduction="sum")),
        lambda b, n: (torch.randn(b, n + 2, 8), torch.randn(b, n, 8)),
        2,
    ),
    "sigmoid_contrastive": Sized(
        "ops.sigmoid_contrastive",
        of(lambda q, k, s, b: ops.sigmoid_contrastive(q, k, s, b, normalize=True)),
        lambda b, n: (*rows(b, n), torch.tensor(5.0), torch.tensor(-3.0)),
        4,
    ),
    "sigmoid_contrastive-ids": Sized(
        "ops.sigmoid_contrastive",
        of(
            lambda q, k, of_q, of_k: ops.sigmoid_contrastive(
                q, k, 5.0, -3.0, query_ids=of_q, key_ids=of_k, reduction="none"
            )
        ),
        lambda b, n: (
            torch.randn(b, n, 8), torch.randn(b, n + 3, 8), torch.arange(n).repeat(b, 1) % 3,
            torch.arange(n + 3).repeat(b, 1) % 3,
        ),
        2,
    ),
    "pyramid_correlation": Sized(
        "ops.pyramid_correlation",
        of(lambda x, f: ops.pyramid_correlation(x, f, levels=3)),
        lambda b, n: (torch.randn(b, 16, n + 2, n), torch.randn(b, 16)),
        2,
    ),
    "pyramid_correlation-video": Sized(
        "ops.pyramid_correlation",
        of(lambda x, f: ops.pyramid_correlation(x, f, norm="softmax")),
        lambda b, n: (torch.randn(b, 16, n, n + 2, n + 3), torch.randn(b, 16)),
        2,
    ),
    "attention_consistency": Sized(
        "ops.attention_consistency",
        of(lambda p, x, f: ops.attention_consistency(x, f, p, teach_features=True)),
        lambda b, n: (torch.rand(b, n, n), torch.randn(b, 16, n, n), torch.randn(b, 16)),
        3,
    ),
    "kmeans_assign": Sized(
        "ops.kmeans_assign",
        of(lambda x, c: ops.kmeans_assign(x, c)),
        lambda b, n: (torch.randn(b, 8), torch.randn(n, 8)),
        0,
    ),
    "kmeans_step": Sized(
        "ops.kmeans_step",
        of(lambda x, c, w: ops.kmeans_step(x, c, weight=w, normalize=True)),
        lambda b, n: (torch.randn(b, 8, n, n), torch.randn(5, 8), torch.rand(b, n, n)),
        0,
    ),
    "cluster_cross_entropy": Sized(
        "ops.cluster_cross_entropy",
        of(lambda x, c, w: ops.cluster_cross_entropy(x, c, weight=w, normalize=True)),
        lambda b, n: (torch.randn(b, 8, n, n), torch.randn(5, 8), torch.rand(5)),
    ),
    "attention": Sized(
        "ops.attention",
        of(lambda q, k, v: ops.attention(q, k, v)),
        lambda b, n: (torch.randn(b, 2, n, 8), torch.randn(b, 2, n + 3, 8), torch.randn(b, 2, n + 3, 12)),
        3,
    ),
    "sparse_code": Sized(
        "ops.sparse_code",
        of(lambda x, d: ops.sparse_code(x, d, steps=3)),
        lambda b, n: (torch.randn(b, n, 8), torch.randn(8, 6)),
        2,
    ),
    "channel_gate": Sized(
        "ops.channel_gate",
        of(_gate),
        lambda b, n: (
            torch.randn(b, 8, n, n + 1), torch.randn(3, 8), torch.randn(8, 3), torch.randn(b, 8, n, n + 1),
        ),
        4,
    ),
    "position_gate": Sized(
        "ops.position_gate",
        of(lambda x, g, r: ops.position_gate(x, g, residual=r)),
        lambda b, n: (torch.randn(b, 8, n, n), torch.rand(b, 1, n, n), torch.randn(b, 8, n, n)),
        3,
    ),
    "pool_channels": Sized("ops.pool_channels", of(lambda x: ops.pool_channels(x)), maps(8)),
    "prepare_frames": Sized(
        "ops.prepare_frames",
        of(
            lambda frames, boxes, flip, jitter: ops.prepare_frames(
                frames, boxes, size=6, flip=flip, jitter=jitter
            )
        ),
        lambda b, n: (
            torch.randint(0, 256, (b, n, 3, n + 3, n + 4), dtype=torch.uint8),
            torch.tensor([[1.0, 1.5, 4.0, 3.0]]).repeat(b, 1),
            torch.arange(b) % 2 == 0,
            0.5 + torch.rand(b, 3),
        ),
        0,
    ),
    "band_spectrogram": Sized(
        "ops.band_spectrogram, ops.band_reach",
        of(
            lambda wave, window, bands: ops.band_spectrogram(
                wave, window, bands, n_fft=32, hop=8, logarithm="decibels", floor=1e-6, remove_mean=True
            ),
            window=torch.hann_window(32),
            bands=torch.rand(5, 17, generator=torch.Generator().manual_seed(0)),
        ),
        lambda b, n: (torch.randn(b, 32 * n),),
    ),
    "warp_and_mask": Sized(
        "ops.warp_and_mask",
        of(lambda x, position, bands, frames: ops.warp_and_mask(x, position, bands, frames)),
        lambda b, n: (
            torch.randn(b, 6, n), torch.sort(n * torch.rand(b, n)).values, torch.rand(b, 6) > 0.7,
            torch.rand(b, n) > 0.7,
        ),
    ),
    "block_statistics": Sized(
        "ops.block_statistics",
        of(lambda x, y, scale: ops.block_statistics(x, y, scale, similarity="l2")),
        lambda b, n: (torch.randn(b, 24), torch.randn(n, 24), torch.tensor(2.0)),
        0,
    ),
    "block_gradients": Sized(
        "ops.block_gradients",
        of(lambda x, y, scale, row, column: ops.block_gradients(x, y, scale, row, column, need_y=True)),
        lambda b, n: (
            torch.randn(b, 24), torch.randn(n, 24), torch.tensor(0.5), torch.rand(3, b), torch.rand(3, n),
        ),
        0,
    ),
    "ClipLoss": Sized(
        "losses.ClipLoss", losses.ClipLoss, lambda b, n: (*rows(b, n), torch.tensor(5.0)), 3
    ),
    "SigLipLoss": Sized(
        "losses.SigLipLoss",
        losses.SigLipLoss,
        lambda b, n: (*rows(b, n), torch.tensor(5.0), torch.tensor(-3.0)),
        4,
    ),
    "InfoNCELoss": Sized("losses.InfoNCELoss", lambda: losses.InfoNCELoss(normalize=True), rows, 2),
    "InfoNCE": Sized(
        "losses.InfoNCE", losses.InfoNCE, lambda b, n: (*rows(b, n), torch.randn(13, 24)), 3
    ),
    "DenseContrastiveLoss": Sized(
        "losses.DenseContrastiveLoss",
        losses.DenseContrastiveLoss,
        lambda b, n: (torch.randn(b, 8, n, n), torch.randn(b, n, 8)),
        2,
    ),
    "SupConLoss": Sized(
        "losses.SupConLoss", losses.SupConLoss, lambda b, n: (torch.randn(b, 2, 24), torch.arange(b) % 3)
    ),
    "SupConLoss-mask": Sized(
        "losses.SupConLoss",
        lambda: losses.SupConLoss(contrast_mode="one"),
        lambda b, n: (torch.randn(b, 2, 24), None, torch.eye(b)),
    ),
    "NTXentLoss": Sized("losses.NTXentLoss", losses.NTXentLoss, rows, 2),
    "NTXentLoss-bank": Sized("losses.NTXentLoss, losses.MemoryBank", _Banked, rows, 2),
    **LAYERS,
}  # fmt: skip


#: Public names that are no computation on tensors, or whose results' shapes hang on values: lists of boxes, pairs.
APART = {
    "ops.cache_budget", "ops.set_cache_budget", "ops.implementations",
    "nn.attention.DefaultBoxes", "nn.attention.nms", "nn.attention.proposals", "nn.attention.match_anchors",
    "nn.attention.proposal_loss", "nn.attention.group_filters",
}  # fmt: skip


def public_names() -> set[str]:
    """Of every operator, loss and layer less those apart."""
    modules = {"ops": ops, "losses": losses, "nn": nn_package, "nn.attention": attention}
    names = {f"{place}.{name}" for place, module in modules.items() for name in module.__all__}
    return (names | {"nn.logmel.LogMel"}) - APART
