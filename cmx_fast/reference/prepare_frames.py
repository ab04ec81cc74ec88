"""Decoded frames to a network's input in plain PyTorch: every step a pass over the views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
#: Clips turned to floating point at a time: their frames as stored take four times the bytes of uint8.
_AT_ONCE = 8


def prepare_frames(
    frames: Tensor,
    boxes: Tensor,
    *,
    size: int | tuple[int, int],
    image_sizes: Tensor | None = None,
    flip: Tensor | None = None,
    jitter: Tensor | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.prepare_frames`, also for float64. Memory: some float32 frames."""
    wide = torch.promote_types(dtype, torch.float32)
    grid = _grid(frames, boxes.to(wide), size, image_sizes, flip)
    views = [
        F.grid_sample(part.flatten(1, 2).to(wide), places, align_corners=False)
        for part, places in zip(frames.split(_AT_ONCE), grid.split(_AT_ONCE), strict=True)
    ]
    pictures = torch.cat(views).unflatten(1, frames.shape[1:3]) / 255
    if jitter is not None:
        pictures = _recolour(pictures, jitter.to(wide))
    middle, scale = (
        torch.as_tensor(value, dtype=wide, device=frames.device).expand(3)[:, None, None]
        for value in (mean, std)
    )
    result = ((pictures - middle) / scale).to(dtype).transpose(1, 2)
    return result.contiguous(
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format
    )


def grey(images: Tensor) -> Tensor:
    """Luma, (B, 3, H, W) to (B, 1, H, W)."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Blend ``share * images + (1 - share) * other``, clamped to [0, 1]."""
    return torch.lerp(other.expand_as(images), images, share).clamp(0, 1)


def _recolour(pictures: Tensor, jitter: Tensor) -> Tensor:
    """Brightness, contrast and saturation of clips (B, T, 3, H, W) in [0, 1]."""
    flat = pictures.flatten(0, 1)
    frame_factors = jitter.repeat_interleave(pictures.shape[1], 0)[:, :, None, None, None]
    brightness, contrast, saturation = frame_factors.unbind(1)
    flat = (flat * brightness).clamp(0, 1)
    flat = blend(flat, grey(flat).mean((2, 3), keepdim=True), contrast)
    return blend(flat, grey(flat), saturation).view_as(pictures)


def _grid(
    frames: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    image_sizes: Tensor | None,
    flip: Tensor | None,
) -> Tensor:
    """Pixel centres (B, H, W, 2) of the views in the frames, as grid_sample takes them."""
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = frames.shape[3:]
    left, top, wide, high = boxes[:, :, None].unbind(1)
    down, across = ((torch.arange(n, device=boxes.device) + 0.5).to(boxes) / n for n in (rows, columns))
    if flip is not None:
        across = torch.where(flip[:, None], 1 - across, across)
    ends = boxes.new_tensor([[height, width]]) if image_sizes is None else image_sizes.to(boxes)
    low, right = ends.split(1, 1)
    # Not beyond the last pixel centres: what lies there may be the empty part of a frame.
    x = (left + wide * across).clamp_min(0.5).minimum(right - 0.5)
    y = (top + high * down).clamp_min(0.5).minimum(low - 0.5)
    x, y = 2 * x / width - 1, 2 * y / height - 1
    return torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)
