"""Spectrograms with their time warped and parts of them masked."""

from __future__ import annotations

import torch
from torch import Tensor


def warp_and_mask(x: Tensor, position: Tensor, hidden_bands: Tensor, hidden_frames: Tensor) -> Tensor:
    """The same function as :func:`cmx_fast.ops.warp_and_mask`, differentiable in x. Memory: a few copies of x."""
    last = x.shape[2] - 1
    position = position.nan_to_num(0).clamp(0, last)
    left = position.floor()
    # float32 may have rounded the last place up, behind the row.
    rows = left.long().clamp_max(last)[:, None].expand(-1, x.shape[1], -1)
    wide = x.to(position.dtype)
    a, b = wide.gather(2, rows), wide.gather(2, (rows + 1).clamp_max(last))
    share = (position - left)[:, None]
    warped = torch.where(share == 0, a, a + share * (b - a)).to(x.dtype)
    return warped.masked_fill(hidden_bands[:, :, None] | hidden_frames[:, None], 0)
