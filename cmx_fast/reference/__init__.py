"""Every operator in plain PyTorch, with the public signature less ``impl``: oracle, baseline and fallback."""

from cmx_fast.reference.attention import attention
from cmx_fast.reference.band_spectrogram import band_spectrogram
from cmx_fast.reference.channel_gate import channel_gate
from cmx_fast.reference.cluster_cross_entropy import cluster_cross_entropy
from cmx_fast.reference.dense_contrastive import dense_contrastive
from cmx_fast.reference.dense_scores import dense_scores
from cmx_fast.reference.info_nce import info_nce, reduce_loss
from cmx_fast.reference.kmeans import feature_rows, kmeans_assign, kmeans_step, unit_rows
from cmx_fast.reference.position_gate import pool_channels, position_gate
from cmx_fast.reference.prepare_frames import blend, grey, prepare_frames
from cmx_fast.reference.pyramid_correlation import attention_consistency, pyramid_correlation
from cmx_fast.reference.sigmoid_contrastive import sigmoid_contrastive
from cmx_fast.reference.softmax_block import block_gradients, block_statistics
from cmx_fast.reference.sparse_code import sparse_code, spectral_norm_squared
from cmx_fast.reference.supcon import supcon
from cmx_fast.reference.warp_and_mask import warp_and_mask

__all__ = [
    "attention",
    "attention_consistency",
    "band_spectrogram",
    "blend",
    "block_gradients",
    "block_statistics",
    "channel_gate",
    "cluster_cross_entropy",
    "dense_contrastive",
    "dense_scores",
    "feature_rows",
    "grey",
    "info_nce",
    "kmeans_assign",
    "kmeans_step",
    "pool_channels",
    "position_gate",
    "prepare_frames",
    "pyramid_correlation",
    "reduce_loss",
    "sigmoid_contrastive",
    "sparse_code",
    "spectral_norm_squared",
    "supcon",
    "unit_rows",
    "warp_and_mask",
]
