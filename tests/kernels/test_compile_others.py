"""Kernels of attention, gates, frames, clusters, sparse codes and correlation, compiled for four chips: they fit."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

# sm_80's tiles also serve sm_86 and sm_89 with 99 KB; its own limit is 163 KB.
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
CORRELATION = {f"pyramid_correlation_{part}_kernel" for part in ("forward", "map", "windows", "backward")}
ATTENTION = {f"attention_{part}_kernel" for part in ("forward", "mean_slope", "gradient")}
KERNELS = {
    "dense_scores max_mean": {
        f"dense_scores_{part}_kernel" for part in ("forward", "query_gradient", "key_gradient")
    },
    "dense_scores max": {"dense_scores_forward_kernel", "dense_scores_pair_gradient_kernel"},
    "attention 64 512": ATTENTION,
    "attention 256 512": ATTENTION,
    "attention 24 96": ATTENTION,
    "frames": {"prepare_frames_grey_kernel", "prepare_frames_view_kernel"},
    "gates": {
        *(f"channel_gate_{part}_kernel" for part in ("pool", "apply", "slope", "gradient")),
        *(f"position_gate_{part}_kernel" for part in ("pool", "spread", "apply", "gradient")),
    },
    "band_spectrogram": {"band_spectrogram_frame_kernel", "band_spectrogram_band_kernel"},
    "warp_and_mask": {"warp_and_mask_kernel"},
    "kmeans 27": {"kmeans_prepare_kernel", "kmeans_step_kernel", "kmeans_lost_kernel"},
    "kmeans 64": {"kmeans_prepare_kernel", "kmeans_step_kernel", "kmeans_lost_kernel"},
    "kmeans_many": {f"kmeans_{part}_kernel" for part in ("prepare", "assign", "segment_sum", "add_segments")},
    "cluster_cross_entropy": {
        "kmeans_prepare_kernel",
        "cluster_cross_entropy_forward_kernel",
        "cluster_cross_entropy_backward_kernel",
    },
    "sparse_code": {"sparse_code_forward_kernel", "sparse_code_backward_kernel"},
    "correlation 8x8": CORRELATION,
    "correlation 28x28": CORRELATION | {"pyramid_correlation_filters_kernel"},
    "correlation 9x4": CORRELATION,
}
# Their products are float32's whatever the type of the features: steps of an iteration feed the next.
IN_FLOAT32 = {"sparse_code"}
CASES = [
    (chip, dtype, width, call)
    for chip in SHARED_BYTES
    for dtype, width, call in (
        ("bfloat16", 128, "kmeans 27"),
        ("float32", 128, "kmeans 27"),
        ("bfloat16", 128, "kmeans 64"),
        ("float32", 128, "kmeans 64"),
        ("bfloat16", 128, "kmeans_many"),
        ("float32", 4096, "kmeans_many"),
        ("bfloat16", 128, "cluster_cross_entropy"),
        ("float32", 4096, "cluster_cross_entropy"),
        ("bfloat16", 128, "sparse_code"),
        ("bfloat16", 512, "correlation 8x8"),
        ("float32", 512, "correlation 28x28"),
        ("float32", 512, "correlation 9x4"),
        ("float32", 128, "band_spectrogram"),
        ("bfloat16", 128, "warp_and_mask"),
        ("bfloat16", 256, "gates"),
        ("float32", 256, "gates"),
        ("bfloat16", 49, "gates"),
        ("float32", 49, "gates"),
        ("bfloat16", 3136, "gates"),
        ("bfloat16", 3, "frames"),
        ("float32", 3, "frames"),
        ("bfloat16", 128, "dense_scores max_mean"),
        ("float32", 128, "dense_scores max_mean"),
        ("float16", 512, "dense_scores max"),
        ("bfloat16", 128, "attention 64 512"),
        ("float32", 128, "attention 64 512"),
        ("bfloat16", 128, "attention 256 512"),
        ("float16", 128, "attention 24 96"),
    )
]


@pytest.mark.parametrize(("chip", "dtype", "width", "call"), CASES)
def test_fits_the_chip(compiled, chip, dtype, width, call):
    kernels = compiled[chip, dtype, width, call].result(timeout=600)
    assert {kernel.kernel for kernel in kernels} == KERNELS[call]
    for kernel in kernels:
        assert kernel.spilled == 0, kernel
        assert not kernel.narrow_offsets, kernel
        assert kernel.shared <= SHARED_BYTES[chip], kernel
        assert kernel.registers <= 255, kernel
        if kernel.dots and dtype != "float32" and call not in IN_FLOAT32:
            assert kernel.matrix_instructions, kernel
