"""The operators. One function each; ``impl`` chooses between the kernels and the PyTorch reference.

The kernels have gradients in reverse mode, once, by ``torch.autograd``. In torch.func's transforms (``grad``, ``jvp``,
``vmap``, ``hessian``, ...) and in forward mode ``impl="auto"`` takes the reference, with its memory, whose operations
PyTorch differentiates any way; a kernel asked for by name raises ``ValueError``.
"""

from cmx_fast.ops._cache import cache_budget, set_cache_budget
from cmx_fast.ops._implementations import implementations
from cmx_fast.ops.attention import attention
from cmx_fast.ops.band_spectrogram import band_reach, band_spectrogram
from cmx_fast.ops.channel_gate import channel_gate
from cmx_fast.ops.cluster_cross_entropy import cluster_cross_entropy
from cmx_fast.ops.dense_contrastive import dense_contrastive
from cmx_fast.ops.dense_scores import dense_scores
from cmx_fast.ops.info_nce import info_nce
from cmx_fast.ops.kmeans import kmeans_assign, kmeans_step
from cmx_fast.ops.position_gate import pool_channels, position_gate
from cmx_fast.ops.prepare_frames import prepare_frames
from cmx_fast.ops.pyramid_correlation import attention_consistency, pyramid_correlation
from cmx_fast.ops.sigmoid_contrastive import sigmoid_contrastive
from cmx_fast.ops.softmax_block import block_gradients, block_statistics
from cmx_fast.ops.sparse_code import sparse_code
from cmx_fast.ops.supcon import supcon
from cmx_fast.ops.warp_and_mask import warp_and_mask

__all__ = [
    "attention",
    "attention_consistency",
    "band_reach",
    "band_spectrogram",
    "block_gradients",
    "block_statistics",
    "cache_budget",
    "channel_gate",
    "cluster_cross_entropy",
    "dense_contrastive",
    "dense_scores",
    "implementations",
    "info_nce",
    "kmeans_assign",
    "kmeans_step",
    "pool_channels",
    "position_gate",
    "prepare_frames",
    "pyramid_correlation",
    "set_cache_budget",
    "sigmoid_contrastive",
    "sparse_code",
    "supcon",
    "warp_and_mask",
]
