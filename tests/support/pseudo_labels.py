"""Shared by the tests of PiCIE and C2L: a training batch, and the clustering loss written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pseudo_labelled(
    rows: int = 2, *, clusters: int = 3, width: int = 16, cells: int = 8
) -> dict[str, Tensor]:
    """Random pictures, views that are not warped, random pseudo-labels around random unit centroids."""
    batch = {f"image{view}": torch.rand(rows, 3, 4 * cells, 4 * cells) for view in (1, 2)}
    batch["warp"] = torch.eye(2, 3).expand(rows, 2, 3)
    for view in (1, 2):
        batch[f"labels{view}"] = torch.randint(clusters, (rows, cells, cells))
        batch[f"centroids{view}"] = F.normalize(torch.randn(clusters, width))
        batch[f"weight{view}"] = torch.rand(clusters) + 0.1
    return batch


def cross_entropy(features: Tensor, batch: dict[str, Tensor], view: int) -> Tensor:
    """The centroids as a 1x1 classifier of unit features, weighted by cluster."""
    logits = torch.einsum("bdhw,kd->bkhw", F.normalize(features, dim=1), batch[f"centroids{view}"])
    return F.cross_entropy(logits, batch[f"labels{view}"], batch[f"weight{view}"])
