"""The maps without channels around pyramid correlation's passes over the features: small, and a few launches.

Forward, a program of the map kernel owns a whole sample and walks its positions BLOCK at a time: a softmax needs the
sample's maximum and sum, which it finds online in a first walk, and a consistency loss its sum of squares. Backward, a
program of the windows kernel owns a sample and a level and walks the level's windows BLOCK at a time; each window
gathers from the positions that read it, so nothing is scattered and nothing added atomically.

Why it is right: the enlargement is bilinear with half-pixel centres, as F.interpolate(scale_factor=2^level) has it, and
its transpose is the same tent function of position and window, so forward and backward agree. Every mask keeps its
loads within the sample.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div

FLOOR = tl.constexpr(1e-12)  # a vector no longer than this answers with a cosine of 0 and gets no gradient
BLOCK = 256


class Pyramid(NamedTuple):
    """Levels of (T, H, W) maps: windows of 2^level x 2^level within a frame, partial ones at the far edges."""

    times: int
    height: int
    width: int
    levels: int

    @property
    def positions(self) -> int:
        return self.times * self.height * self.width

    @property
    def cells(self) -> int:
        """Windows of all levels; those of a level lie together, (T, h, w)."""
        return sum(
            self.times * ceil_div(self.height, 2**level) * ceil_div(self.width, 2**level)
            for level in range(self.levels)
        )


@triton.jit
def level_size(level, T, H, W):
    """Rows and columns of a level's windows, and the offset of the first among the sample's cells."""
    h, w = (H + (1 << level) - 1) >> level, (W + (1 << level) - 1) >> level
    offset = tl.where(level > 0, T * H * W, 0)
    offset += tl.where(level > 1, T * ((H + 1) >> 1) * ((W + 1) >> 1), 0)
    return h, w, offset


@triton.jit
def inverse_length(square):
    """1 / sqrt(square), or 0 where the length is at most FLOOR; NaN stays."""
    length = tl.sqrt(square)
    return tl.where(length <= FLOOR, 0.0, 1.0 / tl.where(length <= FLOOR, 1.0, length))


@triton.jit
def filter_inverse(filter_ptr, b, C, BLOCK: tl.constexpr):
    """Inverse length of a sample's filter."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        c = start + tl.arange(0, BLOCK)
        # (BLOCK,)
        value = tl.load(filter_ptr + b.to(tl.int64) * C + c, mask=c < C, other=0.0)
        total += value * value
    return inverse_length(tl.sum(total, axis=0))


@triton.jit
def enlarged(value_ptr, cells, p, valid, T, H, W, LEVELS: tl.constexpr):
    """(BLOCK,) mean over the levels of their windows' values, enlarged bilinearly to positions p."""
    t, y, x = p // (H * W), p // W % H, p % W
    total = tl.load(value_ptr + cells + p, mask=valid, other=0.0)
    for level in tl.static_range(1, LEVELS):
        h, w, offset = level_size(level, T, H, W)
        row = tl.maximum((y + 0.5) / (1 << level) - 0.5, 0.0)
        column = tl.maximum((x + 0.5) / (1 << level) - 0.5, 0.0)
        top, left = row.to(tl.int32), column.to(tl.int32)
        bottom, right = tl.minimum(top + 1, h - 1), tl.minimum(left + 1, w - 1)
        down, across = row - top, column - left
        base = cells + offset + t * h * w
        # (BLOCK,) each: the four windows around each position.
        upper = tl.load(value_ptr + (base + top * w + left), mask=valid, other=0.0) * (1 - across)
        upper += tl.load(value_ptr + (base + top * w + right), mask=valid, other=0.0) * across
        lower = tl.load(value_ptr + (base + bottom * w + left), mask=valid, other=0.0) * (1 - across)
        lower += tl.load(value_ptr + (base + bottom * w + right), mask=valid, other=0.0) * across
        total += upper * (1 - down) + lower * down
    return total / LEVELS


@triton.jit
def pyramid_correlation_map_kernel(
    value_ptr,  # (B, CELLS)
    out_ptr,  # out, (B, P): the map, less the prediction where there is one
    prediction_ptr,  # (B, P) or None
    loss_ptr,  # out, (B,) or None: sum of squares of out
    P,
    T,
    H,
    W,
    CELLS,
    LEVELS: tl.constexpr,
    COSINE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if SOFTMAX:
        for start in range(0, P, BLOCK):
            p = start + tl.arange(0, BLOCK)
            value = enlarged(value_ptr, b * CELLS, p, p < P, T, H, W, LEVELS)
            value = tl.where(p < P, value, float("-inf"))
            higher = tl.maximum(highest, value)
            # Without a finite value yet there is nothing to rescale.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(highest - shift) + tl.exp(value - shift)
            highest = higher
    top = tl.max(highest, axis=0)
    # A lane that met nothing adds 0; one that met only NaN, which a GPU's maximum drops, adds NaN.
    normaliser = tl.sum(total * tl.exp(highest - top), axis=0)
    loss = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BLOCK):
        p = start + tl.arange(0, BLOCK)
        value = enlarged(value_ptr, b * CELLS, p, p < P, T, H, W, LEVELS)
        if COSINE:
            value = (1 + value) / 2
        if SOFTMAX:
            value = tl.exp(value - top) / normaliser
        if prediction_ptr is not None:
            value -= tl.load(prediction_ptr + b * P + p, mask=p < P, other=0.0).to(tl.float32)
            loss += tl.where(p < P, value * value, 0.0)
        # (BLOCK,)
        tl.store(out_ptr + b * P + p, value, mask=p < P)
    if loss_ptr is not None:
        tl.store(loss_ptr + b, tl.sum(loss, axis=0))


@triton.jit
def pyramid_correlation_windows_kernel(
    grad_ptr,  # (B, P)
    map_ptr,  # (B, P), read behind a softmax
    filter_ptr,  # (B, C)
    cosine_ptr,  # (B, CELLS) or None
    inverse_ptr,  # (B, CELLS) or None
    filter_factors_ptr,  # out, (B, CELLS): multiple of the filter in the gradient of a window's positions
    window_factors_ptr,  # out, (B, CELLS): multiple of the window's own sum in it; or None
    radial_ptr,  # out, (B, LEVELS): multiple of the filter that its gradient loses; or None
    C,
    P,
    T,
    H,
    W,
    CELLS,
    LEVELS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients by every window's value, as the multiples that the features' pass applies.

    With g the gradient by a window's value and n its positions: of a mean product g / n of the filter. Of a cosine
    c = <f, m> / (|f| |m|), with m the window's mean, the derivative by m is (f / |f| - c m / |m|) / |m|:
    ``filter_factors`` is g / (n |f| |m|), and ``window_factors``, to be multiplied with the window's sum,
    -g c / (n |m|)^2. The derivative by f likewise loses c f / |f|^2: ``radial`` is the sum of g c / |f|^2.
    """
    b, level = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mean = 0.0
    if SOFTMAX:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, P, BLOCK):
            p = start + tl.arange(0, BLOCK)
            value = tl.load(map_ptr + b * P + p, mask=p < P, other=0.0)
            # (BLOCK,): through the softmax, grad less its mean under the map.
            total += value * tl.load(grad_ptr + b * P + p, mask=p < P, other=0.0)
        mean = tl.sum(total, axis=0)
    scale = 1.0
    if cosine_ptr is not None:
        scale = filter_inverse(filter_ptr, b, C, BLOCK)
    h, w, offset = level_size(level, T, H, W)
    side = 1 << level
    radial = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, T * h * w, BLOCK):
        q = start + tl.arange(0, BLOCK)
        valid = q < T * h * w
        t, i, j = q // (h * w), q // w % h, q % w
        # The positions that lie between this window and its neighbours; of level 0 the position itself.
        slope = tl.zeros((BLOCK,), tl.float32)
        margin = side // 2
        for down in range(-margin, side + margin):
            for right in range(-margin, side + margin):
                y, x = (i << level) + down, (j << level) + right
                inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
                row = tl.minimum(tl.maximum((y + 0.5) / side - 0.5, 0.0), h - 1.0)
                column = tl.minimum(tl.maximum((x + 0.5) / side - 0.5, 0.0), w - 1.0)
                share = tl.maximum(1 - tl.abs(row - i), 0.0) * tl.maximum(1 - tl.abs(column - j), 0.0)
                # (BLOCK,): one position of each window's neighbourhood, and its share in the enlargement.
                p = b * P + (t * H + y) * W + x
                grad = tl.load(grad_ptr + p, mask=inside, other=0.0)
                if SOFTMAX:
                    grad = tl.load(map_ptr + p, mask=inside, other=0.0) * (grad - mean)
                slope += tl.where(inside, share * grad, 0.0)
        slope /= LEVELS
        rows = tl.minimum(H - (i << level), side)
        count = (rows * tl.minimum(W - (j << level), side)).to(tl.float32)
        # (BLOCK,) each, of these windows
        cell = b * CELLS + offset + q
        if cosine_ptr is not None:
            slope /= 2
            cosine = tl.load(cosine_ptr + cell, mask=valid, other=0.0)
            inverse = tl.load(inverse_ptr + cell, mask=valid, other=0.0)
            radial += tl.where(valid, slope * cosine, 0.0)
            tl.store(
                window_factors_ptr + cell, -slope * cosine * inverse * inverse / (count * count), mask=valid
            )
            slope = slope * inverse
        tl.store(filter_factors_ptr + cell, scale * slope / count, mask=valid)
    if cosine_ptr is not None:
        tl.store(radial_ptr + b * LEVELS + level, tl.sum(radial, axis=0) * scale * scale)


@triton.jit
def pyramid_correlation_filters_kernel(
    partial_ptr,  # (B, PROGRAMS, C)
    filter_ptr,  # (B, C)
    radial_ptr,  # (B, LEVELS) or None
    out_ptr,  # (B, C)
    PROGRAMS,
    C,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for program in range(PROGRAMS):
        # (BLOCK,)
        total += tl.load(partial_ptr + (b * PROGRAMS + program) * C + c, mask=c < C, other=0.0)
    if radial_ptr is not None:
        radial = 0.0
        for level in tl.static_range(LEVELS):
            radial += tl.load(radial_ptr + b * LEVELS + level)
        total -= radial * tl.load(filter_ptr + b * C + c, mask=c < C, other=0.0)
    # (BLOCK,)
    tl.store(out_ptr + b * C + c, total, mask=c < C)


def make_maps(
    pyramid: Pyramid,
    values: Tensor,
    norm: str,
    out: Tensor,
    prediction: Tensor | None,
    losses: Tensor | None,
) -> None:
    """Write the map into ``out`` (B, T, H, W), or its difference from a prediction and the sums of its squares."""
    pyramid_correlation_map_kernel[(len(values),)](
        values, out, prediction, losses, pyramid.positions, *pyramid[:3], pyramid.cells, LEVELS=pyramid.levels,
        COSINE=norm == "cosine", SOFTMAX=norm == "softmax", BLOCK=BLOCK,
    )  # fmt: skip


def window_gradients(
    pyramid: Pyramid,
    grad_map: Tensor,
    attention: Tensor,
    filters: Tensor,
    cosines: Tensor,
    inverse_norms: Tensor,
    norm: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``filter_factors`` and ``window_factors`` (B, cells) and ``radial`` (B, levels) of the windows kernel.

    The last two are None but for cosines.
    """
    batch, cosine = len(grad_map), norm == "cosine"
    filter_factors = filters.new_empty(batch, pyramid.cells)
    window_factors = filters.new_empty(batch, pyramid.cells) if cosine else None
    radial = filters.new_empty(batch, pyramid.levels) if cosine else None
    pyramid_correlation_windows_kernel[(batch, pyramid.levels)](
        grad_map, attention, filters, cosines if cosine else None, inverse_norms if cosine else None, filter_factors,
        window_factors, radial, filters.shape[1], pyramid.positions, *pyramid[:3], pyramid.cells, LEVELS=pyramid.levels,
        SOFTMAX=norm == "softmax", BLOCK=BLOCK,
    )  # fmt: skip
    return filter_factors, window_factors, radial


def sum_filters(partial: Tensor, filters: Tensor, radial: Tensor | None) -> Tensor:
    """The filters' gradient (B, C) from the programs' sums, in their order."""
    batch, programs, channels = partial.shape
    out = filters.new_empty(batch, channels)
    pyramid_correlation_filters_kernel[(batch, ceil_div(channels, BLOCK))](
        partial,
        filters,
        radial,
        out,
        programs,
        channels,
        LEVELS=1 if radial is None else radial.shape[1],
        BLOCK=BLOCK,
    )
    return out
