"""Nearest centroids and the sums of a k-means step in plain PyTorch, with the N x K distances in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_rows(x: Tensor) -> Tensor:
    """The vectors of (N, D) or of maps (B, D, H, W) as (N, D), in the order of the labels; a copy for maps."""
    return x if x.dim() == 2 else x.movedim(1, -1).reshape(-1, x.shape[1])


def _prepared(
    x: Tensor, centroids: Tensor, metric: str, normalize: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows and centroids as the metric compares them."""
    rows, centers = feature_rows(x).to(dtype), centroids.to(dtype)
    if metric == "cosine":
        # No lower bound on the norm: the direction of a zero vector is undefined, so its distance is NaN.
        return rows / rows.norm(dim=1, keepdim=True), centers / centers.norm(dim=1, keepdim=True)
    return (F.normalize(rows, dim=1) if normalize else rows), centers


def _nearest(rows: Tensor, centers: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    # Subtracting a common point changes no distance and keeps the expanded square's digits.
    origin = centers.mean(0)
    moved = centers - origin
    scores = moved.square().sum(1) / 2 - (rows - origin) @ moved.T
    labels = scores.argmin(1)
    distance = (rows - centers[labels]).square().sum(1)
    return labels, distance / 2 if metric == "cosine" else distance


def kmeans_assign(
    x: Tensor, centroids: Tensor, *, metric: str = "l2", normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.kmeans_assign`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, centers = _prepared(x, centroids, metric, normalize, dtype)
    labels, distance = _nearest(rows, centers, metric)
    shape = x.shape[:1] + x.shape[2:]
    return labels.reshape(shape), distance.reshape(shape)


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
    clusters = len(centers)
    weights = torch.ones_like(distance) if weight is None else weight.reshape(-1)
    weights = weights.double()
    sums = rows.new_zeros(clusters, rows.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, rows.double() * weights[:, None])
    if weight is None:
        counts = torch.bincount(labels, minlength=clusters)
    else:
        counts = weights.new_zeros(clusters).index_add_(0, labels, weights)
    inertia = (distance.double() * weights).sum()
    return labels.reshape(x.shape[:1] + x.shape[2:]), sums.to(dtype), counts, inertia
