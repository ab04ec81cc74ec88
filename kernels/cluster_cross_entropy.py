"""Cross-entropy of vectors against frozen centroids on the GPU: launchers of the forward and the backward pass.

A vector's own centroid stays out of the softmax, as in InfoNCE: loss = log(1 + exp(L - z)) with L over the others,
whose gradient keeps its digits where the loss vanishes. Without a target the labels come from the k-means launcher
first.
"""

import torch
import triton
import triton.language as tl
from cmx_fast.kernels.common.arguments import check_dtype, on_own_device
from cmx_fast.kernels.common.logits import softplus
from cmx_fast.kernels.common.norms import through_normalization
from cmx_fast.kernels.common.tiles import dot_precision
from cmx_fast.kernels.kmeans import inverse_norms, kmeans_assign, load_vectors
from torch import Tensor

__all__ = ["cluster_cross_entropy_bwd", "cluster_cross_entropy_fwd"]

CLUSTERS, GRADIENT_CLUSTERS = 32, 16  # centroids of one product
DEPTH = 32  # features of one product


@triton.jit
def logits_of(
    x_ptr, centroid_ptr, p, inside, scale, k, P, K, D, stride_b, stride_p, stride_d,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, CLUSTERS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of the vectors with the centroids k, (BLOCK, CLUSTERS)."""
    logits = tl.zeros((BLOCK, CLUSTERS), tl.float32)
    for d0 in range(0, D, DEPTH):
        d = d0 + tl.arange(0, DEPTH)
        x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d) * scale[:, None]
        place = k.to(tl.int64)[None, :] * D + d[:, None]
        centroids = tl.load(centroid_ptr + place, mask=(k < K)[None, :] & (d < D)[:, None], other=0.0)
        logits = tl.dot(x, centroids, logits, input_precision=PRECISION)
    return logits


@triton.jit
def loss_kernel(
    x_ptr,  # (B, P, D)
    centroid_ptr,  # (K, D) float32
    label_ptr,  # (B * P,)
    loss_ptr,  # (B * P,)
    lse_ptr,  # (B * P,) over the other centroids
    N,
    P,
    K,
    D,
    stride_b,
    stride_p,
    stride_d,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < N
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    if UNIT:
        scale = inverse_norms(x_ptr, p, inside, P, D, stride_b, stride_p, stride_d, False, BLOCK, DEPTH)
    label = tl.load(label_ptr + p, mask=inside, other=0)
    maximum = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    own = tl.zeros((BLOCK,), tl.float32)
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        logits = logits_of(
            x_ptr, centroid_ptr, p, inside, scale, k, P, K, D, stride_b, stride_p, stride_d,
            PRECISION, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        mine = k[None, :] == label[:, None]
        own += tl.sum(tl.where(mine, logits, 0.0), 1)
        others = tl.where(mine | (k >= K)[None, :], float("-inf"), logits)
        higher = tl.maximum(maximum, tl.max(others, 1))
        # Without a finite logit yet there is nothing to rescale.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(others - shift[:, None]), 1)
        maximum = higher
    lse = tl.where(total > 0, maximum + tl.log(total), float("-inf"))
    # 0 * own: where nothing else is a number the vector itself shows it.
    margin = lse - own + tl.where(total > 0, 0.0, 0.0 * own)
    loss = softplus(margin)
    loss = tl.where((label >= 0) & (label < K), loss, float("nan"))
    tl.store(loss_ptr + p, loss, mask=inside)
    tl.store(lse_ptr + p, lse, mask=inside)


@triton.jit
def gradient_kernel(
    grad_ptr,  # (B * P,)
    x_ptr,
    centroid_ptr,
    label_ptr,
    lse_ptr,
    dx_ptr,  # (B, P, D)
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
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    CLUSTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    ALL_FEATURES: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < N
    d = tl.arange(0, ALL_FEATURES)
    x = load_vectors(x_ptr, p, d, inside, P, D, stride_b, stride_p, stride_d)
    squares = tl.sum(x * x, 1)
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    if UNIT:
        scale = 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)
    label = tl.load(label_ptr + p, mask=inside, other=0)
    valid = inside & (label >= 0) & (label < K)
    features = (d < D)[None, :]
    own = tl.load(centroid_ptr + label[:, None] * D + d[None, :], mask=valid[:, None] & features, other=0.0)
    lse = tl.load(lse_ptr + p, mask=inside, other=0.0)
    margin = lse - tl.sum(x * scale[:, None] * own, 1)
    # Share of the others: 1 / (1 + exp(-margin)), from the side that does not overflow.
    small = tl.exp(-tl.abs(margin))
    share = tl.where(margin > 0, 1.0, small) / (1.0 + small)
    weight = tl.load(grad_ptr + p, mask=inside, other=0.0) * share
    weight = tl.where(valid, weight, float("nan"))
    shift = tl.where(lse == float("-inf"), 0.0, lse)
    gradient = -weight[:, None] * own
    for k0 in range(0, K, CLUSTERS):
        k = k0 + tl.arange(0, CLUSTERS)
        logits = logits_of(
            x_ptr, centroid_ptr, p, inside, scale, k, P, K, D, stride_b, stride_p, stride_d,
            PRECISION, BLOCK, CLUSTERS, DEPTH,
        )  # fmt: skip
        others = (k[None, :] != label[:, None]) & (k < K)[None, :]
        share_k = tl.where(others, weight[:, None] * tl.exp(logits - shift[:, None]), 0.0)
        place = k.to(tl.int64)[:, None] * D + d[None, :]
        centroids = tl.load(centroid_ptr + place, mask=(k < K)[:, None] & features, other=0.0)
        gradient = tl.dot(share_k, centroids, gradient, input_precision=PRECISION)
    if UNIT:
        gradient = through_normalization(gradient, x * scale[:, None], squares, scale)
    place = (p // P).to(tl.int64) * out_stride_b + (p % P).to(tl.int64) * out_stride_p
    out = dx_ptr + place[:, None] + d.to(tl.int64)[None, :] * out_stride_d
    tl.store(out, gradient.to(dx_ptr.dtype.element_ty), mask=inside[:, None] & features)


def _options(x: Tensor, normalize: bool, block: int, clusters: int) -> dict:
    return {
        "UNIT": normalize,
        "PRECISION": dot_precision(x) if x.dtype == torch.float32 else "tf32x3",
        "BLOCK": block,
        "CLUSTERS": clusters,
        "DEPTH": min(DEPTH, max(16, triton.next_power_of_2(x.shape[2]))),
        "num_warps": 8,
    }


@on_own_device
def cluster_cross_entropy_fwd(
    x: Tensor, centroids: Tensor, target: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::cluster_cross_entropy_fwd`` for CUDA.

    Args:
        x: (B, P, D) float32, bfloat16 or float16 with any strides; centroids: (K, D) float32; target: (B, P) int64,
            None for the nearest centroids.

    Returns:
        losses and log-sum-exp over the other centroids, (B, P) float32, and labels (B, P) int64. A target out of
        range gives a NaN loss.
    """
    check_dtype(x)
    centroids = centroids.contiguous()
    if target is None:
        labels = kmeans_assign(x, centroids, "l2", normalize)[0]
    else:
        labels = target.clone(memory_format=torch.contiguous_format)
    losses = x.new_empty(x.shape[:2], dtype=torch.float32)
    lse = torch.empty_like(losses)
    n = losses.numel()
    if n:
        options = _options(x, normalize, 64, CLUSTERS)
        loss_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            x,
            centroids,
            labels,
            losses,
            lse,
            n,
            x.shape[1],
            len(centroids),
            x.shape[2],
            *x.stride(),
            **options,
        )
    return losses, lse, labels


@on_own_device
def cluster_cross_entropy_bwd(
    grad_losses: Tensor, x: Tensor, centroids: Tensor, labels: Tensor, log_sum_exp: Tensor, normalize: bool
) -> Tensor:
    """The operator ``cmx_fast::cluster_cross_entropy_bwd`` for CUDA: dx, laid out and typed like x."""
    dx = torch.empty_like(x)
    n, width = labels.numel(), x.shape[2]
    if n:
        padded = max(16, triton.next_power_of_2(width))
        options = _options(
            x, normalize, 32 if padded <= 128 and x.dtype != torch.float32 else 16, GRADIENT_CLUSTERS
        )
        gradient_kernel[(triton.cdiv(n, options["BLOCK"]),)](
            grad_losses.contiguous(), x, centroids.contiguous(), labels, log_sum_exp, dx, n, x.shape[1],
            len(centroids), width, *x.stride(), *dx.stride(), ALL_FEATURES=padded, **options,
        )  # fmt: skip
    return dx
