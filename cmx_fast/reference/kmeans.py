"""Nearest centroids and the sums of a k-means step in plain PyTorch, with the N x K distances in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast.reference.transforms import transformed

MOST_DIFFERENCES = 2**22  # in memory at once where rows are compared without a product
EXPONENTS = {
    torch.float32: 120,
    torch.float64: 1000,
}  # of powers of two that are neither infinite nor subnormal


def feature_rows(x: Tensor) -> Tensor:
    """The vectors of (N, D) or of maps (B, D, H, W) as (N, D), in the order of the labels; a copy for maps."""
    return x if x.dim() == 2 else x.movedim(1, -1).reshape(-1, x.shape[1])


def unit_rows(rows: Tensor, smallest: float) -> Tensor:
    """Rows divided by max(norm, smallest), as ``F.normalize`` does it, whatever their magnitude.

    With ``smallest`` 0 a zero vector becomes NaN: it has no direction.
    """
    reach = EXPONENTS[rows.dtype]
    exponent = torch.frexp(rows.detach().abs().amax(1, keepdim=True)).exponent.clamp(-reach, reach)
    # By a power of two nothing rounds, and no square of the largest number overflows or vanishes.
    factor = torch.exp2(-exponent.to(rows.dtype))
    scaled = rows * factor
    return scaled / torch.maximum(scaled.norm(dim=1, keepdim=True), smallest * factor)


def _prepared(
    x: Tensor, centroids: Tensor, metric: str, normalize: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows and centroids as the metric compares them."""
    rows, centers = feature_rows(x).to(dtype), centroids.to(dtype)
    if metric == "cosine":
        return unit_rows(rows, 0.0), unit_rows(centers, 0.0)
    return (unit_rows(rows, 1e-12) if normalize else rows), centers


def _nearest(rows: Tensor, centers: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Labels (N,) and distances (N,) of the nearest centers, by ``metric``; distances in float64."""
    if transformed():
        # Below a transform no row can be picked out by its values: all are compared in float64.
        rows, centers = rows.double(), centers.double()
    # Subtracting a common point changes no distance and keeps the expanded square's digits.
    origin = centers.mean(0)
    moved = centers - origin
    squares = moved.square().sum(1)
    labels = (squares / 2 - (rows - origin) @ moved.T).argmin(1)
    own = centers[labels]
    distance = (rows - own).square().sum(1)
    if transformed():
        return labels, distance / 2 if metric == "cosine" else distance
    # Between these bounds no square above has overflowed, nor lost more than a rounding by underflow.
    limits = torch.finfo(rows.dtype)
    smallest, largest = (rows.shape[1] + 8) * limits.tiny / limits.eps, limits.max / 16
    right = (distance >= smallest) & (distance <= largest) & (squares <= largest).all()
    rest = (~right).nonzero()[:, 0]
    rest = rest[(rows[rest] != own[rest]).any(1)]
    distance = distance.double()
    if len(rest):
        labels[rest], distance[rest] = _nearest_of_any_magnitude(rows[rest], centers)
    return labels, distance / 2 if metric == "cosine" else distance


def _nearest_of_any_magnitude(rows: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and squared distances from the differences in float64; of a row without a number the first centroid."""
    rows, centers = rows.double(), centers.double()
    limits = torch.finfo(torch.float64)

    def search(rows: Tensor, factor: float, centers: Tensor = centers) -> tuple[Tensor, Tensor]:
        parts = rows.split(max(1, MOST_DIFFERENCES // centers.numel()))
        minima = [((part[:, None] - centers) * factor).square().sum(2).min(1) for part in parts]
        return torch.cat([least.indices for least in minima]), torch.cat([least.values for least in minima])

    labels, distance = search(rows, 1.0)
    # Only numbers that were float64 come here with squares beyond its ends.
    low = (distance < rows.shape[1] * limits.tiny / limits.eps).nonzero()[:, 0]
    if len(low):
        labels[low], scaled = search(rows[low], 2.0**600)
        distance[low] = scaled * 2.0**-600 * 2.0**-600
    high = distance.isinf().nonzero()[:, 0]
    if len(high):
        labels[high] = search(rows[high] * 2.0**-600, 1.0, centers * 2.0**-600)[0]
    return labels, distance


def kmeans_assign(
    x: Tensor, centroids: Tensor, *, metric: str = "l2", normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.kmeans_assign`. Memory: the scores, (N, K)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, centers = _prepared(x, centroids, metric, normalize, dtype)
    labels, distance = _nearest(rows, centers, metric)
    shape = x.shape[:1] + x.shape[2:]
    return labels.reshape(shape), distance.to(dtype).reshape(shape)


def kmeans_step(
    x: Tensor,
    centroids: Tensor,
    *,
    weight: Tensor | None = None,
    metric: str = "l2",
    normalize: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.kmeans_step`; the sums are made in float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, centers = _prepared(x, centroids, metric, normalize, dtype)
    labels, distance = _nearest(rows, centers, metric)
    clusters = centers.shape[0]
    weights = torch.ones_like(distance) if weight is None else weight.reshape(-1).double()
    sums = rows.new_zeros(clusters, rows.shape[1], dtype=torch.float64)
    sums = sums.index_add(0, labels, rows.double() * weights[:, None])
    if weight is None:
        counts = torch.bincount(labels, minlength=clusters)
    else:
        counts = weights.new_zeros(clusters).index_add(0, labels, weights)
    inertia = (distance * weights).sum()
    return labels.reshape(x.shape[:1] + x.shape[2:]), sums.to(dtype), counts, inertia
