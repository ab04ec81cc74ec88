"""Products of vectors with centroids, from which labels and the clustering loss are made.

Algorithm: |x - m|^2 is least where x.m - |m|^2 / 2 is largest, so a label takes one product and no square of x. The
centroids are moved so that their mean lies at 0, which changes no comparison: Note [Moved centroids]. Tile and owner: a
program of the kernels built on this owns BLOCK vectors and walks the centroids CLUSTERS at a time; x is a
(BLOCK, DEPTH) tile that holds all features (RESIDENT) or DEPTH of them, the centroids are (DEPTH, CLUSTERS).

Why it is right: a score's error is that of a float32 product of the size of the distances. Where float32 holds no
score, square or norm of a vector, that vector is searched again in float64: Note [Vectors that float32 does not hold].
Labels start at 0 or -1 and only ever take an index below K, so none is out of range whatever the data.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.tiles import dot_precision

# Note [Moved centroids]
# ~~~~~~~~~~~~~~~~~~~~~~
# With a common offset |m|^2 / 2 and x.m are large and nearly equal, and their difference has lost the digits that tell
# centroids apart. Moving both by the centroids' mean changes no distance and leaves products of the distances' size.
#   float32 vectors are moved before the product (PARTS = 1): (x - origin) . (m - origin).
#   Halves are multiplied as they are (PARTS = 2): a half is exact in TF32, and every moved centroid is taken as the sum
#   of two TF32 numbers, 22 bits of it. Moving x would subtract origin . (m - origin), a constant of the centroid, from
#   its score: `half` contains it. A norm is a factor of the vector, applied to the product.

# Note [Vectors that float32 does not hold]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Squares of float32 numbers overflow from 2^64 on and may lose digits below some 1e-15. A score that has overflowed
# counts as the highest there is (best_of), so that it is noticed; a program that meets one, a norm out of range
# (is_held) or a distance without digits finds the labels of these vectors again from the differences in float64
# (wide_nearest), where no square of a float32 number comes near the ends. Data of ordinary size pays one reduction for
# the question.

PREPARED_BLOCK, PREPARED_DEPTH = 16, 128  # centroids of a program, and features of its chunk
RESIDENT_WIDTH = 128  # vectors of up to so many features can stay in registers
# Squares up to here leave their sums finite. From LEAST on, times the number of features, they keep their digits.
LARGEST_SQUARE, LEAST_SQUARE = tl.constexpr(2.0**124), tl.constexpr(1e-31)
WIDE_DEPTH = tl.constexpr(4)  # features at a time in float64: more would spill


class Centroids(NamedTuple):
    """Centroids ready for products.

    values: (K, D) float32, unit vectors with cosine.
    parts: (1, K, D), the moved centroids, or (2, K, D), TF32 numbers whose sums they are to 22 bits.
    origin: (D,), the centroids' mean, subtracted from them.
    half: (K,), to be subtracted from a product for its score; the largest score belongs to the nearest centroid. NaN
        where the centroid's square is too large.
    bias: (K,), to be added to a product for its logit, which then lacks only a constant of the vector.
    """

    values: Tensor
    parts: Tensor
    origin: Tensor
    half: Tensor
    bias: Tensor


@triton.jit
def leading_digits(x):
    """float32 numbers truncated to TF32's 10 bits of mantissa."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def kmeans_prepare_kernel(
    centroid_ptr,  # (K, D)
    origin_ptr,  # (D,)
    part_ptr,  # (PARTS, K, D)
    half_ptr,  # (K,)
    bias_ptr,  # (K,)
    K,
    D,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    square = tl.zeros((BLOCK,), tl.float64)
    along = tl.zeros((BLOCK,), tl.float64)
    for d0 in range(0, D, DEPTH):
        d = d0 + tl.arange(0, DEPTH)
        # (BLOCK, DEPTH) of the centroids, (1, DEPTH) of their mean
        place = k.to(tl.int64)[:, None] * D + d[None, :]
        mask = (k < K)[:, None] & (d < D)[None, :]
        origin = tl.load(origin_ptr + d, mask=d < D, other=0.0)[None, :]
        moved = tl.load(centroid_ptr + place, mask=mask, other=0.0) - origin
        moved = tl.where(mask, moved, 0.0)
        square += tl.sum(moved.to(tl.float64) * moved.to(tl.float64), 1)
        along += tl.sum(moved.to(tl.float64) * origin.to(tl.float64), 1)
        if PARTS == 2:
            high = leading_digits(moved)
            tl.store(part_ptr + (k + K).to(tl.int64)[:, None] * D + d[None, :], moved - high, mask=mask)
            moved = high
        # (BLOCK, DEPTH)
        tl.store(part_ptr + place, moved, mask=mask)
    # (BLOCK,) each
    square = tl.where(square <= LARGEST_SQUARE, square, float("nan"))
    if PARTS == 2:
        tl.store(half_ptr + k, (0.5 * square + along).to(tl.float32), mask=k < K)
        tl.store(bias_ptr + k, tl.zeros((BLOCK,), tl.float32), mask=k < K)
    else:
        tl.store(half_ptr + k, (0.5 * square).to(tl.float32), mask=k < K)
        tl.store(bias_ptr + k, along.to(tl.float32), mask=k < K)


def prepare(centroids: Tensor, dtype: torch.dtype, metric: str = "l2") -> Centroids:
    """Centroids (K, D) float32 for vectors of a dtype; a zero vector becomes NaN with cosine. Two to four launches."""
    if metric == "cosine":
        centroids = (centroids / centroids.norm(dim=1, keepdim=True, dtype=torch.float64)).float()
    centroids = centroids.contiguous()
    (k, width), parts = centroids.shape, 1 if dtype == torch.float32 else 2
    prepared = Centroids(
        centroids,
        centroids.new_empty(parts, k, width),
        centroids.mean(0),
        centroids.new_empty(k),
        centroids.new_empty(k),
    )
    kmeans_prepare_kernel[(ceil_div(k, PREPARED_BLOCK),)](
        centroids, prepared.origin, prepared.parts, prepared.half, prepared.bias, k, width,
        PARTS=parts, BLOCK=PREPARED_BLOCK, DEPTH=PREPARED_DEPTH,
    )  # fmt: skip
    return prepared


@triton.jit
def load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d):
    """(BLOCK, DEPTH) float32: features d of the vectors at flat positions p of a strided (B, P, D); 0 outside."""
    place = (p // P).to(tl.int64) * stride_b + (p % P).to(tl.int64) * stride_p
    mask = inside[:, None] & (d < D)[None, :]
    # (BLOCK, DEPTH)
    x = tl.load(x_ptr + place[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def load_and_measure(
    x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, UNIT: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """First features (BLOCK, DEPTH) of vectors, their squared norms (BLOCK,) and inverse norms (BLOCK,), 1 unless UNIT.

    The norm is at least 1e-12; if STRICT a zero vector becomes NaN. Without UNIT only the first DEPTH features are in
    the squared norm. If WIDE, norms that float32 does not hold are found again in float64, by the programs that meet
    them: Note [Vectors that float32 does not hold].
    """
    x = load_vectors(x_ptr, p, tl.arange(0, DEPTH), inside, P, D, stride_b, stride_p, stride_d)
    squares = tl.sum(x * x, 1)
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    if UNIT:
        for d0 in range(DEPTH, D, DEPTH):
            more = load_vectors(
                x_ptr, p, d0 + tl.arange(0, DEPTH), inside, P, D, stride_b, stride_p, stride_d
            )
            squares += tl.sum(more * more, 1)
        norm = tl.sqrt(squares)
        scale = 1.0 / (norm if STRICT else tl.maximum(norm, 1e-12))
        if WIDE:
            lost = inside & (is_held(scale) == 0)
            if tl.max(lost.to(tl.int32)) > 0:
                wide = wide_scales(x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, STRICT, BLOCK)
                scale = tl.where(lost, wide.to(tl.float32), scale)
    return x, squares, scale


@triton.jit
def is_held(scale):
    """True where float32 held the square that an inverse norm came from, with all its digits."""
    return (scale > 2.0**-62) & (scale < 1e14)


@triton.jit
def wide_scales(
    x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, STRICT: tl.constexpr, BLOCK: tl.constexpr
):
    """(BLOCK,) inverse norms of the vectors p, in float64."""
    squares = tl.zeros((BLOCK,), tl.float64)
    for d0 in range(0, D, WIDE_DEPTH):
        d = d0 + tl.arange(0, WIDE_DEPTH)
        x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d).to(tl.float64)
        squares += tl.sum(x * x, 1)
    norm = tl.sqrt(squares)
    return 1.0 / (norm if STRICT else tl.maximum(norm, 1e-12))


@triton.jit
def wide_nearest(
    x_ptr, value_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
    UNIT: tl.constexpr, STRICT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(BLOCK,) labels and squared distances of the vectors p from their differences to every centroid, in float64.

    Squares of float32 numbers lie far from float64's ends. A vector with a NaN, and all beside a centroid that is not
    finite, get label 0 and distance NaN; a vector with an infinity label 0 and an infinite distance.
    """
    scale = tl.full((BLOCK,), 1.0, tl.float64)
    if UNIT:
        scale = wide_scales(x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, STRICT, BLOCK)
    least = tl.full((BLOCK,), float("inf"), tl.float64)
    label = tl.zeros((BLOCK,), tl.int32)
    for k in range(0, K):
        distance = tl.zeros((BLOCK,), tl.float64)
        for d0 in range(0, D, WIDE_DEPTH):
            d = d0 + tl.arange(0, WIDE_DEPTH)
            x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d).to(tl.float64)
            # (DEPTH,)
            own = tl.load(value_ptr + tl.cast(k, tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float64)
            difference = tl.where((d < D)[None, :], x * scale[:, None] - own[None, :], 0.0)
            # own - own is 0, or NaN for a centroid that is not finite.
            distance += tl.sum(difference * difference, 1) + tl.sum(own - own)
        # Nothing is less than NaN: once it is the least it stays.
        nearer = (distance < least) | (distance != distance)
        label = tl.where(nearer, k, label)
        least = tl.where(nearer, distance, least)
    return tl.where(least == least, label, 0), least


@triton.jit
def add_products(
    products, x, scale, origin_ptr, part_ptr, d, k, K, D, PARTS: tl.constexpr, PRECISION: tl.constexpr
):
    """(BLOCK, CLUSTERS) products with those over features d of the vectors x (BLOCK, DEPTH) added."""
    if PARTS == 1:
        x = x * scale[:, None] - tl.load(origin_ptr + d, mask=d < D, other=0.0)[None, :]
    mask = (k < K)[None, :] & (d < D)[:, None]
    for part in tl.static_range(PARTS):
        # (DEPTH, CLUSTERS)
        place = (k + part * K).to(tl.int64)[None, :] * D + d[:, None]
        centroids = tl.load(part_ptr + place, mask=mask, other=0.0)
        products = tl.dot(x, centroids, products, input_precision=PRECISION)
    return products


@triton.jit
def products_with(
    x, scale, k, x_ptr, origin_ptr, part_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr, CLUSTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """(BLOCK, CLUSTERS) float32 products of the vectors p with the moved centroids k.

    ``x`` holds all features if RESIDENT; else the vectors are read again, DEPTH features at a time.
    """
    products = tl.zeros((BLOCK, CLUSTERS), tl.float32)
    if RESIDENT:
        d = tl.arange(0, DEPTH)
        products = add_products(products, x, scale, origin_ptr, part_ptr, d, k, K, D, PARTS, PRECISION)
    else:
        for d0 in range(0, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            part = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
            products = add_products(products, part, scale, origin_ptr, part_ptr, d, k, K, D, PARTS, PRECISION)
    return products if PARTS == 1 else products * scale[:, None]


@triton.jit
def best_of(products, half_ptr, k, K):
    """(BLOCK,) highest score of each vector among the centroids k and its index, of equals the first.

    A score that is NaN or -inf, by overflow, counts as infinite; a centroid beyond the last as -infinite.
    """
    # (CLUSTERS,), infinite beyond the last
    scores = products - tl.load(half_ptr + k, mask=k < K, other=float("inf"))[None, :]
    lost = tl.where(k < K, float("inf"), float("-inf"))
    scores = tl.where(scores > float("-inf"), scores, lost[None, :])
    top = tl.max(scores, 1)
    return top, tl.min(tl.where(scores == top[:, None], k[None, :], 2147483647), 1)


def product_options(x: Tensor, resident: int, depth: int, **tile: int) -> dict:
    """Precision and tile of the products with x (B, P, D): resident up to a width, beyond it in chunks of ``depth``."""
    width, half = x.shape[2], x.dtype != torch.float32
    padded = max(16, next_power_of_2(width))
    # Rows that don't begin at whole transactions are loaded in a layout that a resident tile has no registers for.
    stays = padded <= resident and width % 16 == 0
    return {
        "PARTS": 2 if half else 1,
        "PRECISION": "tf32" if half else dot_precision(x),
        "RESIDENT": stays,
        "DEPTH": padded if stays else depth,
    } | tile


def search_options(x: Tensor) -> dict:
    """Precision and tile of the kernels that search all centroids and hold no sums beside the products."""
    if x.dtype == torch.float32:
        return product_options(x, 16, 16, BLOCK=64, CLUSTERS=32, num_warps=8)
    return product_options(x, RESIDENT_WIDTH, 32, BLOCK=64, CLUSTERS=32, num_warps=8, num_stages=2)
