"""Cross-entropy of vectors against frozen centroids on the GPU: launchers of the forward and the backward pass.

Algorithm: an online softmax over the centroids, which a program walks CLUSTERS at a time; without a target the nearest
centroid is found from the same products. A vector's own centroid stays out of the softmax, as in InfoNCE
(Note [Positives stay outside], kernels/common/positives.py): loss = log(1 + exp(L - z)) with L over the others, whose
gradient keeps its digits where the loss vanishes.

Tile and owner: forward, a program owns BLOCK vectors and holds their label, own logit, maximum and sum, (BLOCK,) each;
x is (BLOCK, DEPTH). Backward, it owns BLOCK vectors and OUT features of their gradient, makes the logits once more and
multiplies their softmax with the centroids, (CLUSTERS, OUT), into (BLOCK, OUT) of float32.

Why it is right: logits are those of the moved centroids (Note [Moved centroids], kernels/kmeans/products.py), which
lack a constant of the vector; a softmax does not change by it, and forward and backward leave out the same one. An own
logit starts as NaN and is only replaced when its centroid is met, so a target out of range gives a NaN loss and no read
out of range. Where scores do not tell the nearest centroid it is searched in float64 and the walk repeated.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.logits import softplus
from cmx_fast.kernels.kmeans.products import (
    LEAST_SQUARE,
    RESIDENT_WIDTH,
    best_of,
    load_and_measure,
    load_vectors,
    prepare,
    product_options,
    products_with,
    search_options,
    wide_nearest,
)

__all__ = ["cluster_cross_entropy_bwd", "cluster_cross_entropy_fwd"]

GRADIENT_WIDTH = 256  # features of the gradient that a program makes; all of them need the logits


@triton.jit
def scan_centroids(
    x, scale, label, x_ptr, origin_ptr, part_ptr, half_ptr, bias_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
    FIND: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr, CLUSTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One walk over all centroids: (BLOCK,) labels, best scores, own logits, and the others' maximum and sum.

    With FIND the label is the nearest centroid so far: when a nearer one is met, the old one's logit (``displaced``)
    joins the others. Else the labels are those given, and the scores are not found.
    """
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    # Stays NaN for a target out of range and for a vector with a NaN, whose own centroid is never met.
    own = tl.full((BLOCK,), float("nan"), tl.float32)
    maximum = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        products = products_with(
            x, scale, k, x_ptr, origin_ptr, part_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
            PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        # (CLUSTERS,)
        logits = products + tl.load(bias_ptr + k, mask=k < K, other=0.0)[None, :]
        displaced = tl.full((BLOCK,), float("-inf"), tl.float32)
        if FIND:
            top, first = best_of(products, half_ptr, k, K)
            better = top > best
            # The nearest so far is one of the others from now on.
            displaced = tl.where(better & (label >= 0), own, float("-inf"))
            best = tl.where(better, top, best)
            label = tl.where(better, first.to(tl.int64), label)
        is_own = k[None, :] == label[:, None]
        in_block = (label >= k0) & (label < tl.minimum(k0 + CLUSTERS, K))
        own = tl.where(in_block, tl.sum(tl.where(is_own, logits, 0.0), 1), own)
        others = tl.where(is_own | (k >= K)[None, :], float("-inf"), logits)
        higher = tl.maximum(tl.maximum(maximum, displaced), tl.max(others, 1))
        # Without a finite logit yet there is nothing to rescale.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(maximum - shift) + tl.exp(displaced - shift)
        total += tl.sum(tl.exp(others - shift[:, None]), 1)
        maximum = higher
    return label, best, own, maximum, total


@triton.jit
def cluster_cross_entropy_forward_kernel(
    x_ptr,  # (B, P, D)
    value_ptr,  # (K, D)
    origin_ptr,  # (D,)
    part_ptr,  # (PARTS, K, D)
    half_ptr,  # (K,)
    bias_ptr,  # (K,)
    target_ptr,  # (B * P,), or None for the nearest
    label_ptr,  # out, (B * P,)
    loss_ptr,  # out, (B * P,)
    softmax_ptr,  # out, (2, B * P) of the other centroids: largest logit, logarithm of the sum above it
    N,
    P,
    K,
    D,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
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
        x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, UNIT, False, True, BLOCK, DEPTH
    )
    label = tl.full((BLOCK,), -1, tl.int64)
    if target_ptr is not None:
        label = tl.load(target_ptr + p, mask=inside, other=0)
    label, best, own, maximum, total = scan_centroids(
        x, scale, label, x_ptr, origin_ptr, part_ptr, half_ptr, bias_ptr, p, inside, P, K, D,
        stride_b, stride_p, stride_d, target_ptr is None, PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
    )  # fmt: skip
    if target_ptr is None:
        # Scores that overflowed, or have no digits left, do not tell the nearest.
        held = (best < float("inf")) & (tl.abs(best) >= (D + 8) * LEAST_SQUARE)
        if tl.max((inside & (held == 0)).to(tl.int32)) > 0:
            nearest, _distance = wide_nearest(
                x_ptr, value_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d, UNIT, False, BLOCK
            )
            label = tl.where(held, label, nearest.to(tl.int64))
            label, best, own, maximum, total = scan_centroids(
                x, scale, label, x_ptr, origin_ptr, part_ptr, half_ptr, bias_ptr, p, inside, P, K, D,
                stride_b, stride_p, stride_d, False, PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
            )  # fmt: skip
    # (BLOCK,) each
    log_sum = tl.log(total)
    tl.store(loss_ptr + p, softplus((maximum - own) + log_sum), mask=inside)
    softmax_ptr += p.to(tl.int64)
    tl.store(softmax_ptr, maximum, mask=inside)
    tl.store(softmax_ptr + N, log_sum, mask=inside)
    tl.store(label_ptr + p, tl.where((label < 0) & (target_ptr is None), 0, label), mask=inside)


@triton.jit
def cluster_cross_entropy_backward_kernel(
    grad_ptr,  # (B * P,)
    x_ptr,
    value_ptr,  # (K, D)
    origin_ptr,
    part_ptr,
    bias_ptr,
    label_ptr,
    softmax_ptr,
    dx_ptr,  # out, (B, P, D) with strides of its own
    N,
    P,
    K,
    D,
    stride_b,
    stride_p,
    stride_d,
    out_stride_b,
    out_stride_p,
    out_stride_d,
    UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT_PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,
):
    """dx = w (sum of the others' centroids by their softmax - own centroid), w = grad * share of the others."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < N
    x, squares, scale = load_and_measure(
        x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, UNIT, False, True, BLOCK, DEPTH
    )
    # (BLOCK,) each
    label = tl.load(label_ptr + p, mask=inside, other=0)
    softmax_ptr += p.to(tl.int64)
    top = tl.load(softmax_ptr, mask=inside, other=0.0)
    log_sum = tl.load(softmax_ptr + N, mask=inside, other=0.0)
    normaliser = tl.exp(-log_sum)
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    features = (d < D)[None, :]
    mean = tl.zeros((BLOCK, OUT), tl.float32)
    mean_logit = tl.zeros((BLOCK,), tl.float32)
    own_logit = tl.full((BLOCK,), float("nan"), tl.float32)
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        products = products_with(
            x, scale, k, x_ptr, origin_ptr, part_ptr, p, inside, P, K, D, stride_b, stride_p, stride_d,
            PARTS, PRECISION, RESIDENT, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        # (CLUSTERS,)
        logits = products + tl.load(bias_ptr + k, mask=k < K, other=0.0)[None, :]
        is_own = k[None, :] == label[:, None]
        in_block = (label >= k0) & (label < tl.minimum(k0 + CLUSTERS, K))
        own_logit = tl.where(in_block, tl.sum(tl.where(is_own, logits, 0.0), 1), own_logit)
        others = (k < K)[None, :] & (k[None, :] != label[:, None])
        # A product summed in another order may lie above the largest.
        softmax = tl.exp(tl.minimum(logits - top[:, None], 0.0)) * normaliser[:, None]
        softmax = tl.where(others, softmax, 0.0)
        mean_logit += tl.sum(tl.where(others, softmax * logits, 0.0), 1)
        # (CLUSTERS, OUT)
        place = k.to(tl.int64)[:, None] * D + d[None, :]
        centroids = tl.load(value_ptr + place, mask=(k < K)[:, None] & features, other=0.0)
        mean = tl.dot(softmax, centroids, mean, input_precision=GRADIENT_PRECISION)
    margin = (top - own_logit) + log_sum
    # Share of the others: 1 / (1 + exp(-margin)), from the side that does not overflow.
    small = tl.exp(-tl.abs(margin))
    share = tl.where(margin > 0, 1.0, small) / (1.0 + small)
    weight = tl.load(grad_ptr + p, mask=inside, other=0.0) * share
    valid = inside & (label >= 0) & (label < K)
    # (BLOCK, OUT): each vector's own centroid
    own = tl.load(value_ptr + label[:, None] * D + d[None, :], mask=valid[:, None] & features, other=0.0)
    gradient = weight[:, None] * (mean - own)
    if UNIT:
        # The gradient's part along the vector is known from the logits. A norm below the floor is a constant.
        radial = tl.where(squares > 1e-24, weight * (mean_logit - own_logit), 0.0)
        unit = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d) * scale[:, None]
        gradient = scale[:, None] * (gradient - radial[:, None] * unit)
    place = (p // P).to(tl.int64) * out_stride_b + (p % P).to(tl.int64) * out_stride_p
    out = dx_ptr + place[:, None] + d.to(tl.int64)[None, :] * out_stride_d
    # (BLOCK, OUT)
    tl.store(out, gradient.to(dx_ptr.dtype.element_ty), mask=inside[:, None] & features)


@on_own_device
def cluster_cross_entropy_fwd(
    x: Tensor, centroids: Tensor, target: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::cluster_cross_entropy_fwd`` for CUDA.

    Args:
        x: (B, P, D) float32, bfloat16 or float16 with any strides; centroids: (K, D) float32; target: (B, P) int64,
            None for the nearest centroids.

    Returns:
        losses (B, P), of the other centroids the largest logit, less by a constant of the vector that the backward pass
        leaves out too, and the logarithm of the sum of exponentials above it (2, B, P), float32, and labels (B, P)
        int64. A target out of range gives a NaN loss.

    Cost: one read of x, or one per 32 centroids beyond 128 features.
    """
    check_dtype(x)
    target = None if target is None else target.contiguous()
    labels = x.new_empty(x.shape[:2], dtype=torch.int64)
    losses = x.new_empty(x.shape[:2], dtype=torch.float32)
    softmax = x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    n = losses.numel()
    if n:
        prepared = prepare(centroids, x.dtype)
        options = search_options(x)
        cluster_cross_entropy_forward_kernel[(ceil_div(n, options["BLOCK"]),)](
            x, prepared.values, prepared.origin, prepared.parts, prepared.half, prepared.bias, target, labels, losses,
            softmax, n, x.shape[1], len(centroids), x.shape[2], *x.stride(), UNIT=normalize, **options,
        )  # fmt: skip
    return losses, softmax, labels


@on_own_device
def cluster_cross_entropy_bwd(
    grad_losses: Tensor, x: Tensor, centroids: Tensor, labels: Tensor, softmax: Tensor, normalize: bool
) -> Tensor:
    """The operator ``cmx_fast::cluster_cross_entropy_bwd`` for CUDA: dx, laid out and typed like x.

    Cost: two N x K x D products, and one more for every further 256 features.
    """
    dx = torch.empty_like(x)
    n, width = labels.numel(), x.shape[2]
    if n:
        prepared = prepare(centroids, x.dtype)
        out, half = min(max(16, next_power_of_2(width)), GRADIENT_WIDTH), x.dtype != torch.float32
        options = product_options(
            x, RESIDENT_WIDTH if half else 16, 32 if half else 16,
            BLOCK=32 if out <= RESIDENT_WIDTH and half else 16, CLUSTERS=16, num_warps=8,
        )  # fmt: skip
        cluster_cross_entropy_backward_kernel[(ceil_div(n, options["BLOCK"]), ceil_div(width, out))](
            grad_losses.contiguous(), x, prepared.values, prepared.origin, prepared.parts, prepared.bias, labels,
            softmax, dx, n, x.shape[1], len(centroids), width, *x.stride(), *dx.stride(), UNIT=normalize,
            GRADIENT_PRECISION="tf32x3" if half else options["PRECISION"], OUT=out, **options,
        )  # fmt: skip
    return dx
