"""Cross-entropy against frozen centroids in plain PyTorch, with the logits of every pixel in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.reference.kmeans import feature_rows, kmeans_assign, unit_rows


def cluster_cross_entropy(
    x: Tensor,
    centroids: Tensor,
    *,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.cluster_cross_entropy`. Memory: the logits, (N, K)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    centers = centroids.detach().to(dtype)
    if target is None:
        target = kmeans_assign(x.detach(), centers, normalize=normalize)[0]
    rows = feature_rows(x).to(dtype)
    rows = unit_rows(rows, 1e-12) if normalize else rows
    class_weight = None if weight is None else weight.to(dtype)
    return F.cross_entropy(rows @ centers.T, target.reshape(-1), weight=class_weight), target
