"""Pyramid correlation filtering on the GPU: launchers of the forward and the backward pass, and the consistency loss.

Algorithm: a window's mean product with the filter is the mean of its positions' products, so one pass over the features
makes the products, and the squares of every level's window sums, of all levels. What follows works on maps without
channels (kernels/pyramid_correlation/maps.py). Backward, one pass reads the features and writes their gradient: to each
position a multiple of the filter and, with cosines, a multiple of the sum of each window around it.

Tile and owner: a tile is TILE whole windows of the coarsest level, INNER positions each, of one frame, by CHANNELS
channels: (TILE, INNER, CHANNELS). Forward, a program owns one tile of windows and walks all channels, so each window's
value is one program's. Backward, a program owns CHANNELS channels and one split of a sample's tiles and writes every
element of their gradient once; the filter's gradient is summed over splits in a fixed order. Positions lie in the order
of Note [Z-order], so no window is cut and its sums never leave the tile.

Why it is right: everything is accumulated in float32 whatever the features; positions outside the frame load 0 and
count 0, so a partial window has the mean of what is there. A vector no longer than 1e-12 has an inverse length of 0,
and with it a cosine and a gradient of 0. Memory beyond the results: a few floats per window and, backward, one (C,) row
per split.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.tiles import multiprocessors
from cmx_fast.kernels.pyramid_correlation.maps import (
    Pyramid,
    inverse_length,
    make_maps,
    sum_filters,
    window_gradients,
)

__all__ = ["attention_consistency_fwd", "pyramid_correlation_bwd", "pyramid_correlation_fwd"]

# Note [Z-order]
# ~~~~~~~~~~~~~~
# The INNER = 4^(LEVELS - 1) positions of a coarsest window are numbered along the Z curve: bits 0 and 2 of the number
# are the column, bits 1 and 3 the row.
#
#      0  1 |  4  5
#      2  3 |  6  7       Four consecutive numbers are a 2 x 2 window of level 1, sixteen a window of level 2.
#     ------+------       So a level's sums are sums along the last axis of (..., INNER / 4, 4): no gather, no partner
#      8  9 | 12 13       in another program.
#     10 11 | 14 15

ELEMENTS = 4096  # of a program's tile
STAGES = tl.constexpr(2)  # tiles on their way from memory
FEWEST_TILES = 8  # that programs which share a sample's channels take each


@triton.jit
def place(TILE_INDEX, N_TILES, W, SIDE: tl.constexpr, TILE: tl.constexpr, INNER: tl.constexpr):
    """Frame, rows and columns (TILE, INNER) of a tile's positions, within a window in the order of Note [Z-order]."""
    window = (TILE_INDEX % N_TILES) * TILE + tl.arange(0, TILE)
    across = tl.cdiv(W, SIDE)
    inner = tl.arange(0, INNER)
    down = ((inner >> 1) & 1) + ((inner >> 3) & 1) * 2
    right = (inner & 1) + ((inner >> 2) & 1) * 2
    y = (window // across * SIDE)[:, None] + down[None, :]
    x = (window % across * SIDE)[:, None] + right[None, :]
    return tl.cast(TILE_INDEX // N_TILES, tl.int64), y, x  # the frame is multiplied by sizes of the tensors


@triton.jit
def window_sums(x, TILE: tl.constexpr, INNER: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums over 2 x 2 windows: (TILE, INNER, CHANNELS) to (TILE, INNER / 4, CHANNELS)."""
    return tl.sum(tl.reshape(x, (TILE, INNER // 4, 4, CHANNELS)), axis=2)


@triton.jit
def sums_of_four(x, TILE: tl.constexpr, INNER: tl.constexpr):
    """Sums over 2 x 2 windows: (TILE, INNER) to (TILE, INNER / 4)."""
    return tl.sum(tl.reshape(x, (TILE, INNER // 4, 4)), axis=2)


@triton.jit
def store_windows(value_ptr, inverse_ptr, cell, mask, total, count, square, filter_scale):
    """Store windows' values: total / count, mean products, or with ``inverse_ptr`` cosines, and then inverse norms too.

    ``square`` is that of the window's sum, so square / count^2 that of its mean. All arguments have the shape of
    ``total``.
    """
    count = tl.maximum(count, 1.0)
    value = total / count
    if inverse_ptr is not None:
        inverse = inverse_length(square / (count * count))
        value *= inverse * filter_scale
        tl.store(inverse_ptr + cell, inverse, mask=mask)
    tl.store(value_ptr + cell, value, mask=mask)


@triton.jit
def pyramid_correlation_forward_kernel(
    x_ptr,  # (B, C, T, H, W)
    filter_ptr,  # (B, C)
    value_ptr,  # out, (B, CELLS): cosines or mean products, all levels
    inverse_ptr,  # out, (B, CELLS): inverse norms of the windows' means; or None
    C,
    T,
    H,
    W,
    CELLS,
    N_TILES,
    stride_b,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    INNER: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    SIDE: tl.constexpr = 2 ** (LEVELS - 1)
    COSINE: tl.constexpr = inverse_ptr is not None
    b = (tl.program_id(0) // (T * N_TILES)).to(tl.int64)
    t, y, x = place(tl.program_id(0) % (T * N_TILES), N_TILES, W, SIDE, TILE, INNER)
    inside = (y < H) & (x < W)
    offsets = b * stride_b + t * stride_t + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
    total = tl.zeros((TILE, INNER), tl.float32)
    square0 = tl.zeros((TILE, INNER), tl.float32)
    square1 = tl.zeros((TILE, INNER // 4 if LEVELS > 1 else 1), tl.float32)
    square2 = tl.zeros((TILE, 1), tl.float32)
    filter_square = 0.0
    for start in tl.range(0, C, CHANNELS, num_stages=STAGES):
        c = start + tl.arange(0, CHANNELS)
        # (CHANNELS,)
        kernel = tl.load(filter_ptr + b * C + c, mask=c < C, other=0.0)
        # (TILE, INNER, CHANNELS); positions outside the frame are 0 and add nothing to a window
        values = tl.load(
            x_ptr + offsets[:, :, None] + c.to(tl.int64)[None, None, :] * stride_c,
            mask=inside[:, :, None] & (c < C)[None, None, :],
            other=0.0,
        ).to(tl.float32)
        total += tl.sum(values * kernel[None, None, :], axis=2)
        if COSINE:
            filter_square += tl.sum(kernel * kernel)
            square0 += tl.sum(values * values, axis=2)
            if LEVELS > 1:
                sums = window_sums(values, TILE, INNER, CHANNELS)
                square1 += tl.sum(sums * sums, axis=2)
                if LEVELS > 2:
                    sums = window_sums(sums, TILE, INNER // 4, CHANNELS)
                    square2 += tl.sum(sums * sums, axis=2)
    filter_scale = inverse_length(filter_square)
    count = inside.to(tl.float32)
    cell = b * CELLS + (t * H + y) * W + x
    store_windows(value_ptr, inverse_ptr, cell, inside, total, count, square0, filter_scale)
    if LEVELS > 1:
        # A window's first position, every fourth in Z-order, stands for it.
        corner = tl.arange(0, INNER // 4)
        h1, w1 = tl.cdiv(H, 2), tl.cdiv(W, 2)
        y1 = (tl.min(y, axis=1) // 2)[:, None] + ((corner >> 1) & 1)[None, :]
        x1 = (tl.min(x, axis=1) // 2)[:, None] + (corner & 1)[None, :]
        total, count = sums_of_four(total, TILE, INNER), sums_of_four(count, TILE, INNER)
        cell = b * CELLS + T * H * W + (t * h1 + y1) * w1 + x1
        store_windows(
            value_ptr, inverse_ptr, cell, (y1 < h1) & (x1 < w1), total, count, square1, filter_scale
        )
        if LEVELS > 2:
            h2, w2 = tl.cdiv(H, 4), tl.cdiv(W, 4)
            y2, x2 = (tl.min(y, axis=1) // 4)[:, None], (tl.min(x, axis=1) // 4)[:, None]
            total, count = sums_of_four(total, TILE, INNER // 4), sums_of_four(count, TILE, INNER // 4)
            cell = b * CELLS + T * H * W + T * h1 * w1 + (t * h2 + y2) * w2 + x2
            store_windows(
                value_ptr, inverse_ptr, cell, (y2 < h2) & (x2 < w2), total, count, square2, filter_scale
            )


@triton.jit
def pyramid_correlation_backward_kernel(
    x_ptr,  # (B, C, T, H, W)
    filter_ptr,  # (B, C)
    filter_factors_ptr,  # (B, CELLS): multiple of the filter in the gradient of a window's positions
    window_factors_ptr,  # (B, CELLS): multiple of the window's own sum in it; or None
    radial_ptr,  # (B, LEVELS): multiple of the filter that its gradient loses; None also with several splits
    dx_ptr,  # out, (B, C, T, H, W)
    dfilter_ptr,  # out, (B, n_splits, C): sums of features times `filter_factors`
    C,
    T,
    H,
    W,
    CELLS,
    N_TILES,
    n_splits,
    stride_b,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    out_stride_b,
    out_stride_c,
    out_stride_t,
    out_stride_h,
    out_stride_w,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    INNER: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The features' gradient in some channels of one split of a sample's tiles, and the sums for the filter's."""
    SIDE: tl.constexpr = 2 ** (LEVELS - 1)
    b, split = (tl.program_id(0) // n_splits).to(tl.int64), tl.program_id(0) % n_splits
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = c.to(tl.int64)[None, None, :]
    # (CHANNELS,)
    kernel = tl.load(filter_ptr + b * C + c, mask=c < C, other=0.0)
    dfilter = tl.zeros((CHANNELS,), tl.float32)
    for tile in tl.range(
        split * T * N_TILES // n_splits, (split + 1) * T * N_TILES // n_splits, num_stages=STAGES
    ):
        t, y, x = place(tile, N_TILES, W, SIDE, TILE, INNER)
        inside = (y < H) & (x < W)
        mask = inside[:, :, None] & (c < C)[None, None, :]
        offsets = b * stride_b + t * stride_t + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
        # (TILE, INNER, CHANNELS)
        values = tl.load(x_ptr + offsets[:, :, None] + channel * stride_c, mask=mask, other=0.0).to(
            tl.float32
        )
        filter_factors = tl.zeros((TILE, INNER), tl.float32)
        gradient = tl.zeros((TILE, INNER, CHANNELS), tl.float32)
        sums = values
        h, w, offset = H, W, b * CELLS
        for level in tl.static_range(LEVELS):
            # (TILE, INNER): each position reads the cell of its window.
            cell = offset + (t * h + (y >> level)) * w + (x >> level)
            filter_factors += tl.load(filter_factors_ptr + cell, mask=inside, other=0.0)
            if window_factors_ptr is not None:
                if level > 0:
                    sums = window_sums(sums, TILE, INNER // 4 ** (level - 1), CHANNELS)
                spread = tl.broadcast_to(sums[:, :, None, :], (TILE, INNER // 4**level, 4**level, CHANNELS))
                window_factors = tl.load(window_factors_ptr + cell, mask=inside, other=0.0)
                gradient += tl.reshape(spread, (TILE, INNER, CHANNELS)) * window_factors[:, :, None]
            offset += T * h * w
            h, w = tl.cdiv(h, 2), tl.cdiv(w, 2)
        gradient += filter_factors[:, :, None] * kernel[None, None, :]
        out = (
            b * out_stride_b
            + t * out_stride_t
            + y.to(tl.int64) * out_stride_h
            + x.to(tl.int64) * out_stride_w
        )
        # (TILE, INNER, CHANNELS)
        out_ptr = dx_ptr + out[:, :, None] + channel * out_stride_c
        tl.store(out_ptr, gradient.to(dx_ptr.dtype.element_ty), mask=mask)
        dfilter += tl.sum(tl.sum(values * filter_factors[:, :, None], axis=1), axis=0)
    if radial_ptr is not None:
        for level in tl.static_range(LEVELS):
            dfilter -= tl.load(radial_ptr + b * LEVELS + level) * kernel
    # (CHANNELS,)
    tl.store(dfilter_ptr + (b * n_splits + split) * C + c, dfilter, mask=c < C)


def tiling(pyramid: Pyramid, channels: int) -> dict[str, int]:
    """Tile sizes: windows of the coarsest level, the positions in each, and channels."""
    side = 2 ** (pyramid.levels - 1)
    inner = side * side
    windows = ceil_div(pyramid.height, side) * ceil_div(pyramid.width, side)
    tile = min(next_power_of_2(windows), max(1, 64 // inner))
    depth = min(max(16, next_power_of_2(channels)), max(16, ELEMENTS // (tile * inner)), 128)
    return {"N_TILES": ceil_div(windows, tile), "TILE": tile, "INNER": inner, "CHANNELS": depth}


def correlate(
    features: Tensor, filters: Tensor, levels: int, norm: str
) -> tuple[Pyramid, Tensor, Tensor, Tensor]:
    """The pyramid, every window's value (cosine or mean product), and the cosines and inverse norms to keep."""
    check_dtype(features)
    batch, channels, *size = features.shape
    pyramid = Pyramid(*size, levels)
    values = filters.new_empty(batch, pyramid.cells)
    inverse_norms = torch.empty_like(values) if norm == "cosine" else None
    tiles = tiling(pyramid, channels)
    pyramid_correlation_forward_kernel[(batch * pyramid.times * tiles["N_TILES"],)](
        features, filters, values, inverse_norms, channels, *size, pyramid.cells, tiles.pop("N_TILES"),
        *features.stride(), LEVELS=levels, num_warps=4, **tiles,
    )  # fmt: skip
    if inverse_norms is None:
        return pyramid, values, *(filters.new_empty(batch, 0),) * 2
    return pyramid, values, values, inverse_norms


@on_own_device
def pyramid_correlation_fwd(
    features: Tensor, filters: Tensor, levels: int, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::pyramid_correlation_fwd`` for CUDA.

    Args:
        features: (B, C, T, H, W) float32, bfloat16 or float16 with any strides; filters: (B, C) float32.

    Returns:
        map (B, T, H, W), and for norm "cosine" every window's cosine and inverse norm (B, cells), else (B, 0); float32.
    """
    filters = filters.contiguous()
    out = filters.new_empty(features.shape[0], *features.shape[2:])
    if not len(features):
        return out, filters.new_empty(0, 0), filters.new_empty(0, 0)
    pyramid, values, cosines, inverse_norms = correlate(features, filters, levels, norm)
    make_maps(pyramid, values, norm, out, None, None)
    return out, cosines, inverse_norms


@on_own_device
def attention_consistency_fwd(
    features: Tensor, filters: Tensor, prediction: Tensor, levels: int, norm: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::attention_consistency_fwd`` for CUDA.

    Returns:
        losses (B,), map - prediction (B, T, H, W), and the cosines and inverse norms of
        :func:`pyramid_correlation_fwd`.
    """
    filters, prediction = filters.contiguous(), prediction.contiguous()
    difference, losses = filters.new_empty(prediction.shape), filters.new_empty(len(prediction))
    if not len(features):
        return losses, difference, filters.new_empty(0, 0), filters.new_empty(0, 0)
    pyramid, values, cosines, inverse_norms = correlate(features, filters, levels, norm)
    make_maps(pyramid, values, norm, difference, prediction, losses)
    return losses, difference, cosines, inverse_norms


@on_own_device
def pyramid_correlation_bwd(
    grad_map: Tensor,
    features: Tensor,
    filters: Tensor,
    attention: Tensor,
    cosines: Tensor,
    inverse_norms: Tensor,
    levels: int,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """The operator ``cmx_fast::pyramid_correlation_bwd`` for CUDA: dfeatures, laid out and typed like the features, and
    dfilters (B, C) float32."""
    filters = filters.contiguous()
    batch, channels, *size = features.shape
    pyramid = Pyramid(*size, levels)
    dfeatures = torch.empty_like(features)
    if not batch:
        return dfeatures, torch.empty_like(filters)
    filter_factors, window_factors, radial = window_gradients(
        pyramid, grad_map.contiguous(), attention.contiguous(), filters, cosines, inverse_norms, norm
    )
    tiles = tiling(pyramid, channels)
    # Its tile holds the features and their gradient.
    tiles["CHANNELS"] = max(16, tiles["CHANNELS"] // 2)
    n_tiles, chunks = pyramid.times * tiles["N_TILES"], ceil_div(channels, tiles["CHANNELS"])
    splits = max(1, min(2 * multiprocessors(features.device) // (batch * chunks), n_tiles // FEWEST_TILES))
    sums = filters.new_empty(batch, splits, channels)
    pyramid_correlation_backward_kernel[(batch * splits, chunks)](
        features, filters, filter_factors, window_factors, radial if splits == 1 else None, dfeatures, sums, channels,
        *size, pyramid.cells, tiles.pop("N_TILES"), splits, *features.stride(), *dfeatures.stride(), LEVELS=levels,
        num_warps=4, **tiles,
    )  # fmt: skip
    return dfeatures, sums[:, 0] if splits == 1 else sum_filters(sums, filters, radial)
