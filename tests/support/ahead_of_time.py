"""Compiles the kernels that a call of the launchers would launch, for a chip that need not be there.

Runs in processes without Triton's interpreter (``compile_call`` is what a pool's worker executes): the launchers are
called on CPU tensors with ``JITFunction.run`` replaced, so signatures, constants and tiles are those of a real call.
"""

from __future__ import annotations

import torch
from triton_compiler import Compiled, Launch, compile_launch, described


def compile_call(chip: int, dtype: str, width: int, call: str) -> list[Compiled]:
    """The kernels of one forward and backward pass of a ``call``: "clip", "unit", "wide", "everything", "distances",
    "target", "small", "banks", "supcon", "unit supcon", "references", "sigmoid", "unit sigmoid", "sigmoid ids", "small
    sigmoid", or a key of OTHERS."""
    import triton
    from triton.runtime.jit import JITFunction

    from cmx_fast.kernels import position_gate
    from cmx_fast.kernels.common import tiles

    assert not triton.knobs.runtime.interpret
    # The launchers ask the device themselves which tiles are its own.
    torch.cuda.get_device_capability = lambda device: divmod(chip, 10)
    tiles.architecture.cache_clear()
    tiles.multiprocessors = position_gate.multiprocessors = lambda device: 132
    launches: list[Launch] = []

    def record(self, *args, grid, warmup, **kwargs):
        launches.append(described(self, args, kwargs))

    JITFunction.run = record
    _call(call, getattr(torch, dtype), width)
    return [compile_launch(launch, chip) for launch in launches]


def _kmeans(clusters: int):
    def call(x: torch.Tensor) -> None:
        from cmx_fast.kernels.kmeans.launchers import kmeans_step

        kmeans_step(x, torch.zeros(clusters, x.shape[2]), torch.ones(x.shape[:2]), "l2", True)

    return call


def _kmeans_many(x: torch.Tensor) -> None:
    from cmx_fast.kernels.kmeans.launchers import kmeans_step

    kmeans_step(x, torch.zeros(1000, x.shape[2]), torch.ones(x.shape[:2]), "cosine", False)


def _cluster_cross_entropy(x: torch.Tensor) -> None:
    from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd

    centroids = torch.zeros(27, x.shape[2])
    losses, lse, labels = cluster_cross_entropy_fwd(x, centroids, None, True)
    cluster_cross_entropy_bwd(losses, x, centroids, labels, lse, True)


def _sparse_code(x: torch.Tensor) -> None:
    from cmx_fast.kernels.sparse_code import sparse_code_bwd, sparse_code_fwd

    dictionary, size = torch.zeros(x.shape[2], x.shape[2]), torch.ones(())
    codes = sparse_code_fwd(x, dictionary, size, 0.1, 10)
    sparse_code_bwd(codes, x, dictionary, size, 0.1, 10)


def _correlation(size: tuple[int, ...], levels: int, norm: str):
    def call(x: torch.Tensor) -> None:
        from cmx_fast.kernels.pyramid_correlation.launchers import (
            attention_consistency_fwd,
            pyramid_correlation_bwd,
            pyramid_correlation_fwd,
        )

        features = torch.zeros(8, x.shape[2], *size, dtype=x.dtype)
        filters, prediction = torch.zeros(8, x.shape[2]), torch.zeros(8, *size)
        attention, *kept = pyramid_correlation_fwd(features, filters, levels, norm)
        pyramid_correlation_bwd(prediction, features, filters, attention, *kept, levels, norm)
        attention_consistency_fwd(features, filters, prediction, levels, norm)

    return call


def _attention(d: int, e: int):
    def call(x: torch.Tensor) -> None:
        from cmx_fast.kernels.attention import attention_bwd, attention_fwd

        query, key, value = (torch.zeros(2, 4096, width, dtype=x.dtype) for width in (d, d, e))
        out, lse = attention_fwd(query, key, value, 1.0)
        attention_bwd(out, query, key, value, lse, 1.0, True, True, True)

    return call


def _dense_scores(pool: str, normalize: bool):
    def call(x: torch.Tensor) -> None:
        from cmx_fast.kernels.dense_scores.launchers import dense_scores_bwd, dense_scores_fwd

        # Maps against sequences with padding.
        query, key = x[:, :196], x.new_zeros(3, 250, x.shape[2])
        tensors = query, key, None, torch.ones(3, 250, dtype=torch.bool)
        scores, place, token = dense_scores_fwd(*tensors, pool, 2, normalize, True)
        dense_scores_bwd(scores, *tensors, place, token, pool, 2, normalize, True, True)

    return call


def _gates(x: torch.Tensor) -> None:
    from cmx_fast.kernels.channel_gate import channel_gate_bwd, channel_gate_fwd
    from cmx_fast.kernels.position_gate import (
        pool_channels_bwd,
        pool_channels_fwd,
        position_gate_bwd,
        position_gate_fwd,
    )

    weights = (
        torch.zeros(16, x.shape[1]),
        torch.zeros(16),
        torch.zeros(x.shape[1], 16),
        torch.zeros(x.shape[1]),
    )
    for maximum, residual in ((False, x), (True, None)):
        out, _, hidden, gate, peak = channel_gate_fwd(x, residual, *weights, maximum)
        kept = None if residual is None else out
        channel_gate_bwd(x, x, kept, weights[0], weights[2], hidden, gate, peak)
    # Few samples and many have tiles of their own.
    for maps in (x, torch.zeros(300, 16, x.shape[2], dtype=x.dtype)):
        pooled, peak = pool_channels_fwd(maps)
        pool_channels_bwd(pooled, peak, maps)
        for residual in (None, maps):
            out = position_gate_fwd(maps, pooled[:, 0], residual)
            position_gate_bwd(maps, maps, pooled[:, 0], None if residual is None else out)


def _band_spectrogram(x: torch.Tensor) -> None:
    from cmx_fast.kernels.band_spectrogram import band_spectrogram_fwd
    from cmx_fast.kernels.common.codes import Logarithm

    wave, levels = torch.zeros(2, 24000), torch.zeros(257)
    for n_fft, length, reflected, preemphasis, logarithm in (
        (2048, 2048, True, 0.0, Logarithm.DECIBELS),
        (1024, 480, False, 0.97, Logarithm.NATURAL),
        (512, 512, False, 0.0, Logarithm.NONE),
    ):
        window, bands = torch.zeros(length), torch.zeros(257, n_fft // 2 + 1)
        reach = torch.zeros(257, 2, dtype=torch.int32)
        standardised = (levels, levels) if logarithm == Logarithm.DECIBELS else (None, None)
        band_spectrogram_fwd(
            wave, window, bands, reach, *standardised, 99, n_fft, 160, reflected, preemphasis,
            logarithm == Logarithm.NONE, logarithm, 1e-10,
        )  # fmt: skip


def _warp_and_mask(x: torch.Tensor) -> None:
    from cmx_fast.kernels.warp_and_mask import warp_and_mask_fwd

    hidden = torch.zeros(2, 257, dtype=torch.bool), torch.zeros(2, 99, dtype=torch.bool)
    warp_and_mask_fwd(torch.zeros(2, 257, 99, dtype=x.dtype), torch.zeros(2, 99), *hidden)


def _frames(x: torch.Tensor) -> None:
    from cmx_fast.kernels.prepare_frames import prepare_frames

    frames = torch.zeros(8, 32, 3, 160, 213, dtype=torch.uint8)
    of_clips = (
        torch.ones(8, 4),
        torch.ones(8, 2, dtype=torch.int32),
        torch.ones(8, dtype=torch.bool),
        torch.ones(8, 3),
    )
    colours = [0.45] * 3, [0.225] * 3
    prepare_frames(frames, *of_clips, [128, 128], *colours, x.dtype, False)
    prepare_frames(frames[:, :1], of_clips[0], None, None, None, [128, 128], *colours, x.dtype, True)


OTHERS = {
    "warp_and_mask": _warp_and_mask,
    "band_spectrogram": _band_spectrogram,
    "frames": _frames,
    "gates": _gates,
    "dense_scores max_mean": _dense_scores("mean", True),
    "dense_scores max": _dense_scores("max", False),
    "attention 64 512": _attention(64, 512),
    "attention 256 512": _attention(256, 512),
    "attention 24 96": _attention(24, 96),
    "kmeans 27": _kmeans(27),
    "kmeans 64": _kmeans(64),
    "kmeans_many": _kmeans_many,
    "cluster_cross_entropy": _cluster_cross_entropy,
    "sparse_code": _sparse_code,
    "correlation 8x8": _correlation((4, 8, 8), 2, "cosine"),
    "correlation 28x28": _correlation((4, 28, 28), 2, "cosine"),
    "correlation 9x4": _correlation((1, 9, 4), 3, "softmax"),
}


def _call(call: str, dtype: torch.dtype, width: int) -> None:
    if call in OTHERS:
        # Maps as a network leaves them: positions next to each other in memory.
        OTHERS[call](torch.zeros(2, width, 4000, dtype=dtype).transpose(1, 2))
        return
    from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd
    from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd

    n = 250 if call.startswith("small") else 4000
    x, y, scale = torch.zeros(1, n, width, dtype=dtype), torch.zeros(1, n, width, dtype=dtype), torch.ones(())
    if call in ("supcon", "unit supcon", "references"):
        labels = torch.zeros(n, dtype=torch.int64)
        references = call == "references"
        columns = (y[0, : n // 2], labels[: n // 2]) if references else (None, None)
        inputs = x[0], labels, scale, *columns, call == "supcon"
        _, *saved = supcon_fwd(*inputs, False)
        supcon_bwd(torch.ones(n), *inputs, *saved, True, references)
        return
    if call in ("sigmoid", "unit sigmoid", "sigmoid ids", "small sigmoid"):
        from cmx_fast.kernels.sigmoid_contrastive.launchers import (
            sigmoid_contrastive_bwd,
            sigmoid_contrastive_fwd,
        )

        named = call in ("sigmoid ids", "small sigmoid")
        ids = [torch.zeros(1, n, dtype=torch.int64)] * 2 if named else [None, None]
        inputs = x, y, scale, scale, *ids, call != "unit sigmoid", not named
        loss, *saved = sigmoid_contrastive_fwd(*inputs, True, False)
        sigmoid_contrastive_bwd(torch.ones_like(loss), *inputs, *saved, True, True)
        sigmoid_contrastive_fwd(*inputs, False, False)
        return
    target = None
    if call in ("clip", "unit"):
        bank, options = [], (True, False, "dot", True, call == "clip", 0.0)
    elif call == "small":
        bank, options = [], (True, True, "dot", True, True, 0.0)
    elif call == "banks":
        bank = [torch.zeros(k, width, dtype=dtype) for k in (65536, 300)]
        options = (False, False, "dot", False, True, 0.0)
    elif call == "wide":
        bank, options = [], (True, True, "dot", True, True, 0.1)
    elif call == "distances":
        bank, options = [], (True, False, "l2", True, True, 0.1)
    elif call == "target":
        # Sizes of 1 are constants to the compiler.
        x, y, target = x[:, :1], y[:, :1], torch.zeros(1, 1, dtype=torch.int64)
        bank, options = [], (True, False, "dot", True, False, 0.0)
    else:
        bank, options = [torch.zeros(65536, width, dtype=dtype)], (True, True, "l2", True, True, 0.1)
    _, *saved = info_nce_fwd(x, y, scale, bank, target, *options, call == "banks")
    info_nce_bwd(torch.ones(x.shape[:2]), x, y, scale, bank, target, *options, *saved, True, True)
