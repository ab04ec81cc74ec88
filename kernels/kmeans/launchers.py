"""K-means on the GPU: the launchers of labels with distances, and of a whole step.

Algorithm: labels from one product with the moved centroids (kernels/kmeans/products.py), the distance from the
differences to the centroid chosen. Few centroids of few features are summed in the same program from the same
registers, by a product with the one-hot labels; else the vectors are sorted by label and summed in a second read
(kernels/kmeans/sums.py).

Tile and owner: a program of kmeans_assign owns BLOCK vectors, read as they lie, and walks all centroids. A program of
kmeans_step owns ``length`` vectors, at most VECTORS_PER_PROGRAM, and walks them BLOCK at a time with the sums
(ALL_CLUSTERS, ALL_FEATURES) and counts of its vectors in registers; it stores them in a slot of its own.

Why it is right: ties go to the lowest index within a block of centroids and to the earlier block between them. Sums are
float32 within a program and float64 between them: Note [Sums of a tile alone]. No float atomics and no look at a value
from the host, so a step can be captured in a CUDA graph and gives the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.tiles import multiprocessors
from cmx_fast.kernels.kmeans.products import (
    LARGEST_SQUARE,
    LEAST_SQUARE,
    RESIDENT_WIDTH,
    WIDE_DEPTH,
    Centroids,
    best_of,
    is_held,
    leading_digits,
    load_and_measure,
    load_vectors,
    prepare,
    product_options,
    products_with,
    search_options,
    wide_nearest,
    wide_scales,
)
from cmx_fast.kernels.kmeans.sums import sums_of_sorted

__all__ = ["kmeans_assign", "kmeans_step"]

# Note [Sums of a tile alone]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The matrix unit truncates the sums that it accumulates: over thousands of vectors that is a drift toward zero. So a
# tensor-core product adds only the BLOCK vectors of one tile, and the tiles are added by ordinary float32 additions,
# which round to nearest. The mask in add_one_hot keeps the compiler from folding that addition into the product.
# Multiplying by ones is exact; x is the sum of DIGITS TF32 numbers: one for halves as they are, else three.

MOST_FUSED = 64  # clusters whose sums a program holds
# A program adds so many vectors in float32; float64 adds the programs. Fewer where the chip would not be full.
VECTORS_PER_PROGRAM = 4096
LOST_BLOCK = 128  # vectors whose labels are looked at together for those that are missing


@triton.jit
def nearest(
    x, scale, x_ptr, value_ptr, origin_ptr, part_ptr, half_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr, CLUSTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """(BLOCK,) labels and squared distances of the vectors p, and a mask of those that float32 does not hold.

    See Note [Vectors that float32 does not hold], kernels/kmeans/products.py.
    """
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        products = products_with(
            x, scale, k, x_ptr, origin_ptr, part_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
            PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        top, first = best_of(products, half_ptr, k, K)
        better = top > best  # of equals in different blocks the earlier stays
        label = tl.where(better, first, label)
        best = tl.where(better, top, best)
    distance, largest = squared_distance(x, scale, label, value_ptr, tl.arange(0, DEPTH), inside, D)
    if not RESIDENT:
        for d0 in range(DEPTH, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            more = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
            square, difference = squared_distance(more, scale, label, value_ptr, d, inside, D)
            distance += square
            largest = tl.maximum(largest, difference)
    # Where no score, square or norm has overflowed and the distance has all its digits.
    held = (best < float("inf")) & (distance <= LARGEST_SQUARE) & is_held(scale)
    held = held & ((distance >= (D + 8) * LEAST_SQUARE) | (largest == 0.0))
    return label, distance, inside & (held == 0)


@triton.jit
def squared_distance(x, scale, label, value_ptr, d, inside, D):
    """(BLOCK,) squared distances from the labels' centroids over features d, and the largest differences."""
    mask = inside[:, None] & (d < D)[None, :]
    # (BLOCK, DEPTH): each vector's own centroid
    own = tl.load(value_ptr + label.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
    difference = tl.where(mask, x * scale[:, None] - own, 0.0)
    return tl.sum(difference * difference, 1), tl.max(tl.abs(difference), 1)


@triton.jit
def kmeans_assign_kernel(
    x_ptr,  # (B, P, D)
    value_ptr,  # (K, D)
    origin_ptr,  # (D,)
    part_ptr,  # (PARTS, K, D)
    half_ptr,  # (K,)
    label_ptr,  # out, (B * P,) int64
    distance_ptr,  # out, (B * P,)
    scale_ptr,  # out, (B * P,) inverse norms, or None
    N,
    P,
    K,
    D,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    STRICT: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < N
    x, _, scale = load_and_measure(
        x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, UNIT, STRICT, True, BLOCK, DEPTH
    )
    label, distance, lost = nearest(
        x, scale, x_ptr, value_ptr, origin_ptr, part_ptr, half_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
        PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
    )  # fmt: skip
    if tl.max(lost.to(tl.int32)) > 0:
        first, least = wide_nearest(
            x_ptr, value_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d, UNIT, STRICT, BLOCK
        )
        label = tl.where(lost, first, label)
        distance = tl.where(lost, least.to(tl.float32), distance)
    # (BLOCK,)
    tl.store(label_ptr + p, label.to(tl.int64), mask=inside)
    # (BLOCK,)
    tl.store(distance_ptr + p, distance * (0.5 if STRICT else 1.0), mask=inside)
    if scale_ptr is not None:
        tl.store(scale_ptr + p, scale, mask=inside)


@triton.jit
def add_one_hot(sums, own, x, used, DIGITS: tl.constexpr):
    """(ALL_CLUSTERS, ALL_FEATURES) sums with ``own @ x`` added in the rows ``used``: Note [Sums of a tile alone].

    own: (ALL_CLUSTERS, BLOCK) ones and zeros; x: (BLOCK, ALL_FEATURES), the sum of DIGITS TF32 numbers.
    """
    total = tl.zeros(sums.shape, tl.float32)
    for _ in tl.static_range(DIGITS):
        high = leading_digits(x) if DIGITS > 1 else x
        total = tl.dot(own, high, total, input_precision="tf32")
        x -= high
    return sums + tl.where(used[:, None], total, 0.0)


@triton.jit
def kmeans_step_kernel(
    x_ptr,
    value_ptr,
    origin_ptr,
    part_ptr,
    half_ptr,
    weight_ptr,  # (B * P,) or None
    label_ptr,  # out, (B * P,) int64
    sum_ptr,  # out, (programs, K, D)
    count_ptr,  # out, (programs, K) int32, or float32 sums of weights
    inertia_ptr,  # out, (programs,)
    N,
    P,
    K,
    D,
    length,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    STRICT: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    ALL_CLUSTERS: tl.constexpr,
    ALL_FEATURES: tl.constexpr,
):
    """Labels and sums of the program's ``length`` vectors."""
    program = tl.program_id(0)
    k, d = tl.arange(0, ALL_CLUSTERS), tl.arange(0, ALL_FEATURES)
    sums = tl.zeros((ALL_CLUSTERS, ALL_FEATURES), tl.float32)
    counts = tl.zeros((ALL_CLUSTERS,), tl.float32 if weight_ptr is not None else tl.int32)
    inertia = tl.zeros((BLOCK,), tl.float32)
    for p0 in range(program * length, tl.minimum(program * length + length, N), BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        inside = p < N
        x, _, scale = load_and_measure(
            x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, UNIT, STRICT, False, BLOCK, DEPTH
        )
        label, distance, lost = nearest(
            x, scale, x_ptr, value_ptr, origin_ptr, part_ptr, half_ptr, p, inside, P, K, D,
            stride_b, stride_p, stride_d, PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        # No centroid's for now: kmeans_lost_kernel finds it, for which there are no registers beside the sums.
        label = tl.where(lost, -1, label)
        distance = tl.where(lost, 0.0, distance)
        # (BLOCK,)
        tl.store(label_ptr + p, label.to(tl.int64), mask=inside)
        if not RESIDENT:  # from the nearest cache
            # (BLOCK, ALL_FEATURES)
            x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
        # Beyond N the norm may be 0 and its inverse infinite.
        factor = tl.where(inside, scale, 0.0)
        own = (label[None, :] == k[:, None]) & inside[None, :]
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + p, mask=inside, other=0.0)
            factor *= weight
            distance *= weight
            counts += tl.sum(tl.where(own, weight[None, :], 0.0), 1)
        else:
            counts += tl.sum(own.to(tl.int32), 1)
        # Lost vectors become 0 by a mask of bits, for 0 times infinity is NaN.
        summands = (x * factor[:, None]).to(tl.int32, bitcast=True) & (lost.to(tl.int32) - 1)[:, None]
        sums = add_one_hot(sums, own.to(tl.float32), summands.to(tl.float32, bitcast=True), k < K, DIGITS)
        inertia += distance
    place = program.to(tl.int64) * K + k
    mask = (k < K)[:, None] & (d < D)[None, :]
    # (ALL_CLUSTERS, ALL_FEATURES), then (ALL_CLUSTERS,)
    tl.store(sum_ptr + place[:, None] * D + d[None, :], sums, mask=mask)
    tl.store(count_ptr + place, counts, mask=k < K)
    tl.store(inertia_ptr + program, tl.sum(inertia) * (0.5 if STRICT else 1.0))


@triton.jit
def kmeans_lost_kernel(
    x_ptr,
    value_ptr,
    weight_ptr,
    label_ptr,
    sum_ptr,
    count_ptr,
    inertia_ptr,
    N,
    P,
    K,
    D,
    length,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    STRICT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the centroids of the vectors that the step kernel's same program left without one; add these to its sums.

    A program owns the slot of the step kernel's program of its number, so it reads and writes the sums without atomics.
    Nearly always it finds no label below 0 and returns after reading them.
    """
    program = tl.program_id(0)
    for p0 in range(program * length, tl.minimum(program * length + length, N), BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        inside = p < N
        # (BLOCK,)
        lost = tl.load(label_ptr + p, mask=inside, other=0) < 0
        if tl.max(lost.to(tl.int32)) > 0:
            label, least = wide_nearest(
                x_ptr, value_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d, UNIT, STRICT, BLOCK
            )
            tl.store(label_ptr + p, label.to(tl.int64), mask=lost)
            factor = tl.full((BLOCK,), 1.0, tl.float32)
            if UNIT:
                wide = wide_scales(x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, STRICT, BLOCK)
                factor = wide.to(tl.float32)
            distance = least.to(tl.float32) * (0.5 if STRICT else 1.0)
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + p, mask=inside, other=0.0)
                factor *= weight
                distance *= weight
            inertia = tl.load(inertia_ptr + program)
            tl.store(inertia_ptr + program, inertia + tl.sum(tl.where(lost, distance, 0.0)))
            for k in range(0, K):
                own = lost & (label == k)
                if tl.max(own.to(tl.int32)) > 0:
                    place = program.to(tl.int64) * K + k
                    counted = tl.sum(
                        tl.where(own, weight, 0.0) if weight_ptr is not None else own.to(tl.int32)
                    )
                    tl.store(count_ptr + place, tl.load(count_ptr + place) + counted)
                    for d0 in range(0, D, WIDE_DEPTH):
                        d = d0 + tl.arange(0, WIDE_DEPTH)
                        x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
                        part = tl.sum(tl.where(own[:, None], x * factor[:, None], 0.0), 0)
                        address = sum_ptr + place * D + d
                        tl.store(address, tl.load(address, mask=d < D, other=0.0) + part, mask=d < D)
            tl.debug_barrier()  # the next vectors' sums may be read by other threads


def _norms(metric: str, normalize: bool) -> dict[str, bool]:
    return {"UNIT": normalize or metric == "cosine", "STRICT": metric == "cosine"}


def _assign(
    x: Tensor, centroids: Centroids, metric: str, normalize: bool, with_scale: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    n, k = x.shape[0] * x.shape[1], len(centroids.values)
    labels = x.new_empty(x.shape[:2], dtype=torch.int64)
    distance = x.new_empty(x.shape[:2], dtype=torch.float32)
    scale = x.new_empty(n, dtype=torch.float32) if with_scale else None
    if n:
        options = search_options(x)
        kmeans_assign_kernel[(ceil_div(n, options["BLOCK"]),)](
            x, centroids.values, centroids.origin, centroids.parts, centroids.half, labels, distance, scale,
            n, x.shape[1], k, x.shape[2], *x.stride(), **_norms(metric, normalize), **options,
        )  # fmt: skip
    return labels, distance, scale


@on_own_device
def kmeans_assign(x: Tensor, centroids: Tensor, metric: str, normalize: bool) -> tuple[Tensor, Tensor]:
    """The operator ``cmx_fast::kmeans_assign`` for CUDA.

    Args:
        x: (B, P, D) float32, bfloat16 or float16 with any strides; centroids: (K, D) float32.

    Returns:
        labels (B, P) int64 and distance (B, P) float32.
    """
    check_dtype(x)
    labels, distance, _ = _assign(x, prepare(centroids, x.dtype, metric), metric, normalize, False)
    return labels, distance


@on_own_device
def kmeans_step(
    x: Tensor, centroids: Tensor, weight: Tensor | None, metric: str, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::kmeans_step`` for CUDA.

    Args:
        x, centroids, metric, normalize: as :func:`kmeans_assign`; weight: (B, P) float32 or None.

    Returns:
        labels (B, P) int64; sums (K, D) float32; counts (K,) int64, float64 with weights; inertia, float64 0-d.

    Cost: one read of x and K x D floats per 4096 vectors for up to 64 clusters of 128 features; else two reads, the
    sorted labels, and a copy of maps with neighbouring positions, of which single vectors cannot be read well.
    """
    check_dtype(x)
    (k, width), n = centroids.shape, x.shape[0] * x.shape[1]
    weight = None if weight is None else weight.contiguous()
    prepared = prepare(centroids, x.dtype, metric)
    if k > MOST_FUSED or width > RESIDENT_WIDTH:
        labels, distance, scale = _assign(x, prepared, metric, normalize, normalize or metric == "cosine")
        weighted = distance.double() if weight is None else distance.double() * weight
        return labels, *sums_of_sorted(x, labels, weight, scale, k), weighted.sum()
    half = x.dtype != torch.float32
    block = 16 if half and k > 32 else 32  # what the sums leave of the registers
    length = min(VECTORS_PER_PROGRAM, block * ceil_div(n, 2 * multiprocessors(x.device) * block))
    programs = ceil_div(n, max(length, 1))
    labels = x.new_empty(x.shape[:2], dtype=torch.int64)
    sums = x.new_empty(programs, k, width, dtype=torch.float32)
    counts = x.new_empty(programs, k, dtype=torch.int32 if weight is None else torch.float32)
    inertia = x.new_empty(programs, dtype=torch.float32)
    if n:
        norms = _norms(metric, normalize)
        exact = half and weight is None and not norms["UNIT"]
        kmeans_step_kernel[(programs,)](
            x, prepared.values, prepared.origin, prepared.parts, prepared.half, weight, labels, sums, counts, inertia,
            n, x.shape[1], k, width, length, *x.stride(), **norms, DIGITS=1 if exact else 3,
            ALL_CLUSTERS=max(16, next_power_of_2(k)), ALL_FEATURES=max(16, next_power_of_2(width)),
            **product_options(
                x, RESIDENT_WIDTH if half else 16, 16, BLOCK=block, CLUSTERS=32, num_warps=8, num_stages=2
            ),
        )  # fmt: skip
        kmeans_lost_kernel[(programs,)](
            x, prepared.values, weight, labels, sums, counts, inertia, n, x.shape[1], k, width, length, *x.stride(),
            **norms, BLOCK=LOST_BLOCK, num_warps=4,
        )  # fmt: skip
    return (
        labels,
        sums.sum(0, dtype=torch.float64).float(),
        counts.sum(0, dtype=torch.int64 if weight is None else torch.float64),
        inertia.sum(dtype=torch.float64),
    )
