"""Pooling over channels and gates per position on the GPU.

Tile and owner: a program owns COLS neighbouring positions of a sample and walks all channels ROWS at a time,
(ROWS, COLS) = 2048 elements, so that sums over channels are one program's and need no second pass. Loads run along the
positions, which are neighbours in memory.

Why it is right: sums are float32 per element of the tile, reduced once at the end (pooling) or per tile in the order of
the channels (gradients). The peak is the first of equal maxima, and a NaN, no maximum of comparisons, is taken from the
sum. The ReLU behind a residual passes where the output is not <= 0, which lets a NaN through.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.tiles import multiprocessors

__all__ = ["pool_channels_bwd", "pool_channels_fwd", "position_gate_bwd", "position_gate_fwd"]


@triton.jit
def position_gate_pool_kernel(
    x_ptr,  # (B, C, P)
    pooled_ptr,  # out, (B, 2, P): maxima, means
    peak_ptr,  # out, (B, P): channels of the maxima
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # Per element of the tile, one reduction at the end.
    sums = tl.zeros((ROWS, COLS), tl.float32)
    highest = tl.full((ROWS, COLS), float("-inf"), tl.float32)
    channels = tl.zeros((ROWS, COLS), tl.int32)
    for c0 in range(0, C, ROWS):
        c = c0 + tl.arange(0, ROWS)
        mask = (c < C)[:, None] & (p < P)[None, :]
        offsets = (b * C + c.to(tl.int64))[:, None] * P + p[None, :]
        # (ROWS, COLS)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        sums += x
        above = mask & (x > highest)
        highest = tl.where(above, x, highest)
        channels = tl.where(above, c[:, None], channels)
    # (COLS,) each
    total = tl.sum(sums, 0)
    largest = tl.max(highest, 0)
    peak = tl.min(tl.where(highest == largest[None, :], channels, C), 0)
    inside = p < P
    # A NaN is no maximum of comparisons, but makes a sum.
    tl.store(pooled_ptr + 2 * b * P + p, tl.where(total != total, total, largest), mask=inside)
    tl.store(pooled_ptr + (2 * b + 1) * P + p, total / C, mask=inside)
    tl.store(peak_ptr + b * P + p, peak, mask=inside)


@triton.jit
def position_gate_spread_kernel(
    grad_ptr,  # (B, 2, P)
    peak_ptr,  # (B, P)
    dx_ptr,  # out, (B, C, P)
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # (COLS,) each
    highest_grad = tl.load(grad_ptr + 2 * b * P + p, mask=p < P, other=0.0)
    share = tl.load(grad_ptr + (2 * b + 1) * P + p, mask=p < P, other=0.0) / C
    peak = tl.load(peak_ptr + b * P + p, mask=p < P, other=-1)
    for c0 in range(0, C, ROWS):
        c = c0 + tl.arange(0, ROWS)
        # (ROWS, COLS)
        dx = share[None, :] + tl.where(c[:, None] == peak[None, :], highest_grad[None, :], 0.0)
        offsets = (b * C + c.to(tl.int64))[:, None] * P + p[None, :]
        tl.store(dx_ptr + offsets, dx, mask=(c < C)[:, None] & (p < P)[None, :])


@triton.jit
def position_gate_apply_kernel(
    x_ptr,  # (B, C, P)
    gate_ptr,  # (B, P)
    residual_ptr,  # (B, C, P) or None
    out_ptr,  # out, (B, C, P)
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # (COLS,)
    gate = tl.load(gate_ptr + b * P + p, mask=p < P, other=0.0)
    for c0 in range(0, C, ROWS):
        c = c0 + tl.arange(0, ROWS)
        mask = (c < C)[:, None] & (p < P)[None, :]
        offsets = (b * C + c.to(tl.int64))[:, None] * P + p[None, :]
        # (ROWS, COLS)
        y = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * gate[None, :]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            y = tl.where(y < 0, 0.0, y)
        tl.store(out_ptr + offsets, y, mask=mask)


@triton.jit
def position_gate_gradient_kernel(
    grad_ptr,  # (B, C, P)
    x_ptr,
    gate_ptr,  # (B, P)
    out_ptr,  # (B, C, P) or None
    dx_ptr,  # out, (B, C, P)
    dgate_ptr,  # out, (B, P)
    dresidual_ptr,  # out, (B, C, P) where out_ptr is given
    C,
    P,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # (COLS,)
    gate = tl.load(gate_ptr + b * P + p, mask=p < P, other=0.0)
    total = tl.zeros((COLS,), tl.float32)
    for c0 in range(0, C, ROWS):
        c = c0 + tl.arange(0, ROWS)
        mask = (c < C)[:, None] & (p < P)[None, :]
        offsets = (b * C + c.to(tl.int64))[:, None] * P + p[None, :]
        # (ROWS, COLS) each
        passed = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if out_ptr is not None:
            passed = tl.where(tl.load(out_ptr + offsets, mask=mask, other=0.0) <= 0, 0.0, passed)
            tl.store(dresidual_ptr + offsets, passed, mask=mask)
        total += tl.sum(passed * tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32), 0)
        tl.store(dx_ptr + offsets, passed * gate[None, :], mask=mask)
    tl.store(dgate_ptr + b * P + p, total, mask=p < P)


def _launch(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and tile: the widest tile that gives every multiprocessor two programs, down to 16 positions.

    Eight elements to a thread, as in kernels/channel_gate.py.
    """
    batch, _, positions = x.shape
    cols = min(128, next_power_of_2(positions))
    while cols > 16 and batch * ceil_div(positions, cols) < 2 * multiprocessors(x.device):
        cols //= 2
    return (batch, ceil_div(positions, cols)), {
        "ROWS": 2048 // max(cols, 16),
        "COLS": cols,
        "num_warps": 8,
    }


@on_own_device
def pool_channels_fwd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and mean (B, 2, P) float32, and the maximum's channel (B, P) int32."""
    check_dtype(x)
    (x,) = contiguous(x)
    batch, channels, positions = x.shape
    pooled = x.new_empty(batch, 2, positions, dtype=torch.float32)
    peak = x.new_empty(batch, positions, dtype=torch.int32)
    if peak.numel():
        grid, tile = _launch(x)
        position_gate_pool_kernel[grid](x, pooled, peak, channels, positions, **tile)
    return pooled, peak


@on_own_device
def pool_channels_bwd(grad_pooled: Tensor, peak: Tensor, x: Tensor) -> Tensor:
    """Gradient dx, like x, of :func:`pool_channels_fwd`."""
    grad_pooled, x = contiguous(grad_pooled, x)
    dx = torch.empty_like(x)
    if dx.numel():
        grid, tile = _launch(x)
        position_gate_spread_kernel[grid](grad_pooled, peak, dx, *x.shape[1:], **tile)
    return dx


@on_own_device
def position_gate_fwd(x: Tensor, gate: Tensor, residual: Tensor | None) -> Tensor:
    """``x * gate``, or ``relu(x * gate + residual)``; like x."""
    check_dtype(x)
    x, gate, residual = contiguous(x, gate, residual)
    out = torch.empty_like(x)
    if out.numel():
        grid, tile = _launch(x)
        position_gate_apply_kernel[grid](x, gate, residual, out, *x.shape[1:], **tile)
    return out


@on_own_device
def position_gate_bwd(
    grad_out: Tensor, x: Tensor, gate: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx and dresidual like x (the latter empty without an out), dgate (B, P) float32."""
    grad_out, x, gate, out = contiguous(grad_out, x, gate, out)
    dx, dresidual = torch.empty_like(x), x.new_empty(0) if out is None else torch.empty_like(x)
    dgate = torch.zeros_like(gate)
    if dx.numel():
        grid, tile = _launch(x)
        position_gate_gradient_kernel[grid](
            grad_out, x, gate, out, dx, dgate, dresidual, *x.shape[1:], **tile
        )
    return dx, dgate, dresidual
