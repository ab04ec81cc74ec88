"""Affine sampling of pictures, maps and label maps on one grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def warp(maps: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample maps (B, C, h, w) where ``theta`` (B, 2, 3) sends the output's coordinates, [-1, 1] from edge to edge.

    Pictures and maps of any stride warped by the same ``theta`` stay aligned. ``mode`` is :func:`torch.nn.functional.
    grid_sample`'s; what lies outside is mirrored.
    """
    grid = F.affine_grid(theta.to(maps.dtype), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode, padding_mode="reflection", align_corners=False)
