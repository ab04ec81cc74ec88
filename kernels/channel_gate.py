"""Gates per channel on the GPU: pooling, gating, slopes and gradients as a pass over the planes each.

Algorithm: forward, pool the planes, run the small network, multiply; backward, the slope by each gate, the network
backward, the gradients. Between the passes the network is matrix products of (B, C) by (C, H), which are PyTorch's.
Tile and owner: a plane is the P positions of one channel of one sample; a program owns ROWS planes and walks their
positions COLS at a time, (ROWS, COLS) = 2048 elements. Everything of a plane is one program's, so nothing is atomic.

Why it is right: sums are kept per element of the tile in float32 and reduced once at the end. The peak is the first of
equal maxima: each element of the tile keeps its first, and the reduction takes the least position. A NaN is no maximum
of comparisons, so it is taken from the sum instead. The ReLU behind a residual passes where the output is not <= 0,
which lets a NaN through.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device, without_autocast
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2

__all__ = ["channel_gate_bwd", "channel_gate_fwd"]


@triton.jit
def channel_gate_pool_kernel(
    x_ptr,  # (planes, P)
    mean_ptr,  # out, (B, K, C): means and, for K = 2, maxima
    peak_ptr,  # out, (B, C): positions of the maxima; None for K = 1
    planes,
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < planes
    # Per element of the tile, one reduction at the end: of a few planes every step's would cost more than its loads.
    sums = tl.zeros((ROWS, COLS), tl.float32)
    highest = tl.full((ROWS, COLS), float("-inf"), tl.float32)
    places = tl.zeros((ROWS, COLS), tl.int32)
    for p0 in range(0, P, COLS):
        p = p0 + tl.arange(0, COLS)
        mask = inside[:, None] & (p < P)[None, :]
        # (ROWS, COLS)
        x = tl.load(x_ptr + row[:, None] * P + p[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += x
        if peak_ptr is not None:
            above = mask & (x > highest)
            highest = tl.where(above, x, highest)
            places = tl.where(above, p[None, :], places)
    # (ROWS,) each
    total = tl.sum(sums, 1)
    if peak_ptr is None:
        tl.store(mean_ptr + row, total / P, mask=inside)
    else:
        pooled = row // C * 2 * C + row % C
        tl.store(mean_ptr + pooled, total / P, mask=inside)
        largest = tl.max(highest, 1)
        peak = tl.min(tl.where(highest == largest[:, None], places, P), 1)
        # A NaN is no maximum of comparisons, but makes a sum.
        tl.store(mean_ptr + pooled + C, tl.where(total != total, total, largest), mask=inside)
        tl.store(peak_ptr + row, peak.to(tl.int64), mask=inside)


@triton.jit
def channel_gate_apply_kernel(
    x_ptr,  # (planes, P)
    gate_ptr,  # (planes,)
    residual_ptr,  # (planes, P) or None
    out_ptr,  # out, (planes, P)
    planes,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # (ROWS,)
    gate = tl.load(gate_ptr + row, mask=row < planes, other=0.0)
    for p0 in range(0, P, COLS):
        p = p0 + tl.arange(0, COLS)
        mask = (row < planes)[:, None] & (p < P)[None, :]
        offsets = row[:, None] * P + p[None, :]
        # (ROWS, COLS)
        y = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * gate[:, None]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            y = tl.where(y < 0, 0.0, y)
        tl.store(out_ptr + offsets, y, mask=mask)


@triton.jit
def channel_gate_slope_kernel(
    grad_ptr,  # (planes, P)
    x_ptr,
    out_ptr,  # or None
    gate_ptr,  # (planes,)
    logit_ptr,  # out, (planes,): the gradient by the gate's logit
    planes,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Per element of the tile, as in channel_gate_pool_kernel.
    sums = tl.zeros((ROWS, COLS), tl.float32)
    for p0 in range(0, P, COLS):
        p = p0 + tl.arange(0, COLS)
        mask = (row < planes)[:, None] & (p < P)[None, :]
        offsets = row[:, None] * P + p[None, :]
        # (ROWS, COLS)
        slope = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        slope *= tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if out_ptr is not None:
            slope = tl.where(tl.load(out_ptr + offsets, mask=mask, other=0.0) <= 0, 0.0, slope)
        sums += slope
    # (ROWS,)
    gate = tl.load(gate_ptr + row, mask=row < planes, other=0.0)
    tl.store(logit_ptr + row, tl.sum(sums, 1) * gate * (1 - gate), mask=row < planes)


@triton.jit
def channel_gate_gradient_kernel(
    grad_ptr,  # (planes, P)
    out_ptr,  # or None
    gate_ptr,  # (planes,)
    pooled_ptr,  # (B, K, C): gradients of mean and, with a peak, maximum
    peak_ptr,  # (B, C) or None
    dx_ptr,  # out, (planes, P)
    dresidual_ptr,  # out, (planes, P) where out_ptr is given
    planes,
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < planes
    # (ROWS,)
    gate = tl.load(gate_ptr + row, mask=inside, other=0.0)
    if peak_ptr is None:
        offset = tl.load(pooled_ptr + row, mask=inside, other=0.0) / P
    else:
        pooled = row // C * 2 * C + row % C
        offset = tl.load(pooled_ptr + pooled, mask=inside, other=0.0) / P
        top = tl.load(pooled_ptr + pooled + C, mask=inside, other=0.0)
        peak = tl.load(peak_ptr + row, mask=inside, other=0)
    for p0 in range(0, P, COLS):
        p = p0 + tl.arange(0, COLS)
        mask = inside[:, None] & (p < P)[None, :]
        offsets = row[:, None] * P + p[None, :]
        # (ROWS, COLS) each
        passed = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if out_ptr is not None:
            passed = tl.where(tl.load(out_ptr + offsets, mask=mask, other=0.0) <= 0, 0.0, passed)
            tl.store(dresidual_ptr + offsets, passed, mask=mask)
        dx = passed * gate[:, None] + offset[:, None]
        if peak_ptr is not None:
            dx += tl.where(p[None, :] == peak[:, None], top[:, None], 0.0)
        tl.store(dx_ptr + offsets, dx, mask=mask)


def _launch(planes: int, positions: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile: 2048 elements, of several planes where they are small.

    Eight elements to a thread: more spill where planes are no multiple of 16 bytes, as those of 7 x 7 maps.
    """
    cols = min(1024, next_power_of_2(positions))
    rows = 2048 // max(cols, 64)
    return (ceil_div(planes, rows),), {"ROWS": rows, "COLS": cols, "num_warps": 8}


@on_own_device
@without_autocast
def channel_gate_fwd(
    x: Tensor,
    residual: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    maximum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Result like x; in float32 pooled (B, K, C), hidden (B, K, H), gate (B, C); peak (B, C) or (B, 0) int64."""
    check_dtype(x)
    x, residual = contiguous(x, residual)
    batch, channels, positions = x.shape
    planes, pools = batch * channels, 2 if maximum else 1
    out = torch.empty_like(x)
    pooled = hidden_weight.new_empty(batch, pools, channels)
    peak = hidden_weight.new_empty(batch, channels if maximum else 0, dtype=torch.int64)
    grid, tile = _launch(planes, positions)
    if planes:
        channel_gate_pool_kernel[grid](
            x, pooled, peak if maximum else None, planes, channels, positions, **tile
        )
    hidden = torch.addmm(hidden_bias, pooled.flatten(0, 1), hidden_weight.T).relu_().view(batch, pools, -1)
    gate = torch.addmm(gate_bias, hidden.sum(1), gate_weight.T, beta=pools).sigmoid_()
    if planes:
        channel_gate_apply_kernel[grid](x, gate, residual, out, planes, positions, **tile)
    return out, pooled, hidden, gate, peak


@on_own_device
@without_autocast
def channel_gate_bwd(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor | None,
    hidden_weight: Tensor,
    gate_weight: Tensor,
    hidden: Tensor,
    gate: Tensor,
    peak: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and dresidual like x (the latter empty without an out), dhidden (B, K, H) and dlogits (B, C) in float32."""
    grad_out, x, out = contiguous(grad_out, x, out)
    batch, channels, positions = x.shape
    planes = batch * channels
    dx, dresidual = torch.empty_like(x), x.new_empty(0) if out is None else torch.empty_like(x)
    dlogits = torch.empty_like(gate)
    grid, tile = _launch(planes, positions)
    if planes:
        channel_gate_slope_kernel[grid](grad_out, x, out, gate, dlogits, planes, positions, **tile)
    dhidden = torch.where(hidden <= 0, 0.0, (dlogits @ gate_weight)[:, None])
    dpooled = dhidden @ hidden_weight
    if planes:
        channel_gate_gradient_kernel[grid](
            grad_out, out, gate, dpooled, peak if peak.shape[1] else None, dx, dresidual, planes, channels, positions,
            **tile,
        )  # fmt: skip
    return dx, dresidual, dhidden, dlogits
