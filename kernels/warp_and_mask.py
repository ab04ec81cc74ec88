"""SpecAugment's pass on the GPU.

Tile and owner: a program owns ROWS bands and COLS frames of a sample, (ROWS, COLS), and writes each once. A frame is
read at a position between two stored ones, along the row, so both reads of neighbouring frames meet in the cache.

Why it is right: positions are clamped into the row before they are addresses, and a NaN becomes 0; what is hidden is
not read at all, so a NaN there does not show. A frame at a whole position is copied, without an interpolation that
could round it or take a NaN from its neighbour.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import on_own_device
from cmx_fast.kernels.common.grids import ceil_div

__all__ = ["warp_and_mask_fwd"]


@triton.jit
def warp_and_mask_kernel(
    x_ptr,  # (B, F, T)
    position_ptr,  # (B, T)
    bands_ptr,  # (B, F) bytes: hidden
    frames_ptr,  # (B, T) bytes: hidden
    out_ptr,  # out, (B, F, T)
    F,
    T,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * COLS + tl.arange(0, COLS)
    b = tl.program_id(2).to(tl.int64)
    # (COLS,)
    position = tl.load(position_ptr + b * T + t, mask=t < T, other=0.0)
    # "Not above 0" takes NaN to the first frame: no position may lead out of the row.
    position = tl.where(position > 0, position, 0.0)
    position = tl.minimum(position, T - 1.0)
    # float32 may have rounded the last place up, behind the row.
    left = tl.minimum(position.to(tl.int32), T - 1)
    share = position - left.to(tl.float32)
    # (ROWS,) and (COLS,)
    hidden = tl.load(bands_ptr + b * F + f, mask=f < F, other=1)[:, None] != 0
    hidden |= tl.load(frames_ptr + b * T + t, mask=t < T, other=1)[None, :] != 0
    rows = (b * F + f.to(tl.int64))[:, None] * T
    shown = (hidden == 0) & (f < F)[:, None] & (t < T)[None, :]
    # (ROWS, COLS) each
    a = tl.load(x_ptr + rows + left[None, :], mask=shown, other=0.0).to(tl.float32)
    between = shown & ((share > 0) & (left < T - 1))[None, :]
    c = tl.load(x_ptr + rows + left[None, :] + 1, mask=between, other=0.0).to(tl.float32)
    y = tl.where(between, a + share[None, :] * (c - a), a)
    # (ROWS, COLS)
    tl.store(out_ptr + rows + t[None, :], y, mask=(f < F)[:, None] & (t < T)[None, :])


@on_own_device
def warp_and_mask_fwd(x: Tensor, position: Tensor, hidden_bands: Tensor, hidden_frames: Tensor) -> Tensor:
    """Frames (B, F, T) at positions (B, T) float32, 0 where hidden."""
    batch, bands, frames = x.shape
    x = x.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        rows, cols = 16, 64
        warp_and_mask_kernel[ceil_div(bands, rows), ceil_div(frames, cols), batch](
            x, position.contiguous(), hidden_bands.contiguous().view(torch.uint8),
            hidden_frames.contiguous().view(torch.uint8), out, bands, frames, ROWS=rows, COLS=cols, num_warps=4,
        )  # fmt: skip
    return out
