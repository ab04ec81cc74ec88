"""K-means on the GPU: the launchers of labels with distances, and of a whole step.

A program takes a block of vectors, read as they lie, finds their nearest centroids block by block of centroids, and the
distance to the one chosen. Few centroids of few features are summed in the same program while the vectors are in
registers, by a product with the labels one-hot; else the vectors are sorted by label and summed in a second read. No
float atomics, no look at a value from the host.
"""

import torch
import triton
import triton.language as tl
from cmx_fast.kernels.common.arguments import check_dtype, on_own_device
from cmx_fast.kernels.common.tiles import dot_precision, multiprocessors
from cmx_fast.kernels.kmeans_sums import sums_of_sorted
from torch import Tensor

__all__ = ["kmeans_assign", "kmeans_step"]

BLOCK, STEP_BLOCK = 64, 32  # vectors of a program, and of one that also sums them
CLUSTERS = 32  # centroids of one product
DEPTH = 32  # features of one product
MOST_FUSED = (64, 128)  # clusters and features whose sums a program holds


@triton.jit
def load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d):
    """Features d of the vectors at flat positions p, float32, 0 outside."""
    place = (p // P).to(tl.int64) * stride_b + (p % P).to(tl.int64) * stride_p
    mask = inside[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + place[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def inverse_norms(
    x_ptr, p, inside, P, D, stride_b, stride_p, stride_d,
    STRICT: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """1 / norm of the vectors; unless STRICT of at least 1e-12, else a zero vector becomes NaN."""
    squares = tl.zeros((BLOCK,), tl.float32)
    for d0 in range(0, D, DEPTH):
        x = load_vectors(x_ptr, p, d0 + tl.arange(0, DEPTH), inside, P, D, stride_b, stride_p, stride_d)
        squares += tl.sum(x * x, 1)
    norm = tl.sqrt(squares)
    return 1.0 / (norm if STRICT else tl.maximum(norm, 1e-12))


@triton.jit
def assign_block(
    x_ptr, centroid_ptr, origin_ptr, moved_ptr, half_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
    UNIT: tl.constexpr, STRICT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, CLUSTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Labels, squared distances and what the vectors were multiplied by."""
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    if UNIT:
        scale = inverse_norms(x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, STRICT, BLOCK, DEPTH)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        scores = tl.zeros((BLOCK, CLUSTERS), tl.float32)
        for d0 in range(0, D, DEPTH):
            d = d0 + tl.arange(0, DEPTH)
            x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
            # Less the centroids' mean: the expanded square keeps its digits under a common offset.
            x = x * scale[:, None] - tl.load(origin_ptr + d, mask=d < D, other=0.0)[None, :]
            place = k.to(tl.int64)[None, :] * D + d[:, None]
            moved = tl.load(moved_ptr + place, mask=(k < K)[None, :] & (d < D)[:, None], other=0.0)
            scores = tl.dot(x, moved, scores, input_precision=PRECISION)
        scores -= tl.load(half_ptr + k, mask=k < K, other=float("inf"))[None, :]
        top = tl.max(scores, 1)
        # The first of equals; across blocks the earlier stays.
        first = tl.min(tl.where(scores == top[:, None], k[None, :], 2147483647), 1)
        better = top > best
        label = tl.where(better, first, label)
        best = tl.where(better, top, best)
    distance = tl.zeros((BLOCK,), tl.float32)
    for d0 in range(0, D, DEPTH):
        d = d0 + tl.arange(0, DEPTH)
        x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d) * scale[:, None]
        mask = inside[:, None] & (d < D)[None, :]
        own = tl.load(centroid_ptr + label.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        distance += tl.sum(tl.where(mask, (x - own) * (x - own), 0.0), 1)
    return label, distance, scale


@triton.jit
def assign_kernel(
    x_ptr,  # (B, P, D)
    centroid_ptr,  # (K, D) float32
    origin_ptr,  # (D,)
    moved_ptr,  # (K, D), centroids less origin
    half_ptr,  # (K,), half their squares
    label_ptr,  # (B * P,) int64
    distance_ptr,  # (B * P,)
    scale_ptr,  # (B * P,) or None
    N,
    P,
    K,
    D,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < N
    label, distance, scale = assign_block(
        x_ptr, centroid_ptr, origin_ptr, moved_ptr, half_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
        UNIT, STRICT, PRECISION, BLOCK, CLUSTERS, DEPTH,
    )  # fmt: skip
    tl.store(label_ptr + p, label.to(tl.int64), mask=inside)
    tl.store(distance_ptr + p, distance * (0.5 if STRICT else 1.0), mask=inside)
    if scale_ptr is not None:
        tl.store(scale_ptr + p, scale, mask=inside)


@triton.jit
def step_kernel(
    x_ptr,
    centroid_ptr,
    origin_ptr,
    moved_ptr,
    half_ptr,
    weight_ptr,  # (B * P,) or None
    label_ptr,
    sum_ptr,  # (programs, K, D)
    count_ptr,  # (programs, K) int32, or float32 sums of weights
    inertia_ptr,  # (programs,)
    N,
    P,
    K,
    D,
    blocks,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    ALL_CLUSTERS: tl.constexpr,
    ALL_FEATURES: tl.constexpr,
):
    """Labels and partial sums of the blocks that fall to one of a fixed number of programs."""
    program = tl.program_id(0)
    k, d = tl.arange(0, ALL_CLUSTERS), tl.arange(0, ALL_FEATURES)
    sums = tl.zeros((ALL_CLUSTERS, ALL_FEATURES), tl.float32)
    counts = tl.zeros((ALL_CLUSTERS,), tl.float32 if weight_ptr is not None else tl.int32)
    inertia = 0.0
    for block in range(program, blocks, tl.num_programs(0)):
        p = block * BLOCK + tl.arange(0, BLOCK)
        inside = p < N
        label, distance, scale = assign_block(
            x_ptr, centroid_ptr, origin_ptr, moved_ptr, half_ptr, p, inside, P, K, D,
            stride_b, stride_p, stride_d, UNIT, STRICT, PRECISION, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        tl.store(label_ptr + p, label.to(tl.int64), mask=inside)
        x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d) * scale[:, None]
        x = tl.where(inside[:, None], x, 0.0)
        distance = tl.where(inside, distance, 0.0)
        own = (label[None, :] == k[:, None]) & inside[None, :]
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + p, mask=inside, other=0.0)
            x *= weight[:, None]
            distance *= weight
            counts += tl.sum(tl.where(own, weight[None, :], 0.0), 1)
        else:
            counts += tl.sum(own.to(tl.int32), 1)
        # One-hot rows are exact in any precision that splits x in full.
        sums = tl.dot(own.to(tl.float32), x, sums, input_precision=PRECISION)
        inertia += tl.sum(distance)
    place = program.to(tl.int64) * K + k
    mask = (k < K)[:, None] & (d < D)[None, :]
    tl.store(sum_ptr + place[:, None] * D + d[None, :], sums, mask=mask)
    tl.store(count_ptr + place, counts, mask=k < K)
    tl.store(inertia_ptr + program, inertia * (0.5 if STRICT else 1.0))


class Centroids:
    """Centroids as the programs compare them: unit vectors for cosine, and moved so that their mean is 0."""

    def __init__(self, centroids: Tensor, metric: str):
        if metric == "cosine":
            centroids = centroids / centroids.norm(dim=1, keepdim=True)
        self.values = centroids.contiguous()
        wide = self.values.double()
        self.origin = wide.mean(0).float()
        moved = wide - self.origin
        self.moved, self.half = moved.float(), (moved.square().sum(1) / 2).float()

    def arguments(self) -> tuple[Tensor, ...]:
        return self.values, self.origin, self.moved, self.half


def _precision(x: Tensor) -> str:
    """Halves are multiplied in three TF32 products: less the centroids' mean they have more digits than a half."""
    return dot_precision(x) if x.dtype == torch.float32 else "tf32x3"


def _options(x: Tensor, metric: str, normalize: bool, block: int) -> dict:
    return {
        "UNIT": normalize or metric == "cosine",
        "STRICT": metric == "cosine",
        "PRECISION": _precision(x),
        "BLOCK": block,
        "CLUSTERS": CLUSTERS,
        "DEPTH": 16 if x.dtype == torch.float32 else min(DEPTH, max(16, triton.next_power_of_2(x.shape[2]))),
        "num_warps": 4 if x.dtype == torch.float32 and block == BLOCK else 8,
    }


def _assign(
    x: Tensor, centroids: Centroids, metric: str, normalize: bool, with_scale: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    n = x.shape[0] * x.shape[1]
    labels = x.new_empty(x.shape[:2], dtype=torch.int64)
    distance = x.new_empty(x.shape[:2], dtype=torch.float32)
    scale = x.new_empty(n, dtype=torch.float32) if with_scale else None
    if n:
        assign_kernel[(triton.cdiv(n, BLOCK),)](
            x, *centroids.arguments(), labels, distance, scale, n, x.shape[1], len(centroids.values), x.shape[2],
            *x.stride(), **_options(x, metric, normalize, BLOCK),
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
    labels, distance, _ = _assign(x, Centroids(centroids, metric), metric, normalize, False)
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

    Memory: K x D per multiprocessor where the sums are fused, else the sorted labels. One read of x, else two.
    """
    check_dtype(x)
    (k, width), n = centroids.shape, x.shape[0] * x.shape[1]
    weight = None if weight is None else weight.contiguous()
    prepared = Centroids(centroids, metric)
    if k > MOST_FUSED[0] or width > MOST_FUSED[1]:
        labels, distance, scale = _assign(x, prepared, metric, normalize, normalize or metric == "cosine")
        weighted = distance.double() if weight is None else distance.double() * weight
        return labels, *sums_of_sorted(x, labels, weight, scale, k), weighted.sum()
    labels = x.new_empty(x.shape[:2], dtype=torch.int64)
    blocks = triton.cdiv(n, STEP_BLOCK)
    programs = max(1, min(2 * multiprocessors(x.device), blocks))
    sums = x.new_empty(programs, k, width, dtype=torch.float32)
    counts = x.new_empty(programs, k, dtype=torch.int32 if weight is None else torch.float32)
    inertia = x.new_empty(programs, dtype=torch.float32)
    step_kernel[(programs,)](
        x, *prepared.arguments(), weight, labels, sums, counts, inertia, n, max(x.shape[1], 1), k, width, blocks,
        *x.stride(), **_options(x, metric, normalize, STEP_BLOCK),
        ALL_CLUSTERS=max(16, triton.next_power_of_2(k)), ALL_FEATURES=max(16, triton.next_power_of_2(width)),
    )  # fmt: skip
    return (
        labels,
        sums.sum(0, dtype=torch.float64).float(),
        counts.sum(0, dtype=torch.int64 if weight is None else torch.float64),
        inertia.sum(dtype=torch.float64),
    )
