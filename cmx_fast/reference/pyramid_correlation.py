"""Pyramid correlation filtering in plain PyTorch: every scale's features and products in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-12  # a vector no longer than this answers with a cosine of 0 and gets no gradient


def window_means(frames: Tensor, level: int) -> Tensor:
    """Means of (N, C, H, W) over windows of 2^level x 2^level, partial ones at the far edges."""
    return F.avg_pool2d(frames, 2**level, ceil_mode=True, count_include_pad=False) if level else frames


def enlarge(maps: Tensor, level: int, height: int, width: int) -> Tensor:
    """Enlarge (N, 1, h, w) bilinearly by exactly 2^level, and cut off what partial windows add: height x width."""
    if level == 0:
        return maps
    return F.interpolate(maps, scale_factor=2**level, mode="bilinear")[..., :height, :width]


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Vectors divided by their lengths; 0, without gradient, where the length is at most 1e-12."""
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    short = norm <= FLOOR
    return torch.where(short, 0.0, vectors / torch.where(short, 1.0, norm))


def pyramid_correlation(
    features: Tensor, filters: Tensor, *, levels: int = 2, norm: str = "cosine"
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.pyramid_correlation`, in float32 or better.

    Memory: every level's window means, products and enlargement.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    batch, channels, *size = features.shape
    height, width = size[-2:]
    # Time is part of the batch: windows lie within a frame.
    times = size[0] if len(size) == 3 else 1
    frames = features.to(dtype).reshape(batch, channels, times, height, width).transpose(1, 2)
    frames = frames.reshape(batch * times, channels, height, width)
    kernel = filters.to(dtype)
    if norm == "cosine":
        kernel = unit(kernel, 1)
    kernel = kernel.repeat_interleave(times, 0)[:, :, None, None]
    response = frames.new_zeros(batch * times, 1, height, width)
    for level in range(levels):
        means = window_means(frames, level)
        if norm == "cosine":
            means = unit(means, 1)
        response = response + enlarge((means * kernel).sum(1, keepdim=True), level, height, width)
    response = (response / levels).reshape(batch, *size)
    if norm == "cosine":
        return (1 + response) / 2
    return response.flatten(1).softmax(1).reshape_as(response) if norm == "softmax" else response


def attention_consistency(
    features: Tensor,
    filters: Tensor,
    prediction: Tensor,
    *,
    levels: int = 2,
    norm: str = "cosine",
    teach_features: bool = False,
    return_map: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.attention_consistency`."""
    target = pyramid_correlation(features, filters, levels=levels, norm=norm)
    difference = (target if teach_features else target.detach()) - prediction.to(target.dtype)
    loss = difference.flatten(1).square().sum(1).mean()
    return (loss, target.detach()) if return_map else loss
