"""Affine sampling of pictures, maps and label maps on one grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(maps: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample maps (B, C, h, w) where ``theta`` (B, 2, 3) sends the output's coordinates, [-1, 1] from edge to edge.

    Pictures and maps of any stride warped by the same ``theta`` stay aligned. ``mode`` is that of
    :func:`torch.nn.functional.grid_sample`; the outside is mirrored.
    """
    grid = affine_grid(theta.to(maps.dtype), maps.shape[2], maps.shape[3], align_corners=False)
    return F.grid_sample(maps, grid, mode, padding_mode="reflection", align_corners=False)


def affine_grid(theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """:func:`torch.nn.functional.affine_grid` of theta (B, 2, 3): (B, height, width, 2).

    PyTorch's own is traced for one height and width only.
    """
    x, y = (pixel_places(theta, count, align_corners) for count in (width, height))
    across, down, shift = theta[:, None, None].unbind(4)
    return across * x[:, None] + (down * y[:, None, None] + shift)


def pixel_places(like: Tensor, count: int, align_corners: bool) -> Tensor:
    """The pixels' middles (count,) along a side, where -1 and 1 are the outermost pixels' middles or edges.

    The dtype and device are those of ``like``.
    """
    steps = torch.arange(count, device=like.device).to(like.dtype)
    if align_corners:
        return 2 * steps / max(count - 1, 1) - min(count - 1, 1)
    return (2 * steps + 1) / count - 1
