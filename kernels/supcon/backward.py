"""Backward pass of SupCon: matrix kernels (kernels/supcon/gradient.py), and the sum of their splits.

The forward pass has left all that the matrix kernels need to know of a row, so that nothing comes before them: two
launches, three where both sides of a problem with references want their gradient. A program of the last kernel owns
ROWS whole rows of one side, (ROWS, WIDTH) with WIDTH >= D; it adds their slots in their order, undoes the normalisation
with all features at hand and writes them once in the inputs' dtype. Program 0 also sums dscale.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.norms import Rows, finish_tile, inverse_norm, through_normalization
from cmx_fast.kernels.supcon.gradient import row_gradient


def sides(
    features: Tensor, ref_features: Tensor | None, norms: Tensor, normalize: bool
) -> tuple[Rows, Rows | None]:
    """Rows and, if there are references, columns, each with its part of the inverse norms (M + R,) to normalise."""
    m = len(features)
    rows = Rows(features, norms[:m] if normalize else None)
    return rows, None if ref_features is None else Rows(ref_features, norms[m:] if normalize else None)


@triton.jit
def finish_rows(
    pid,
    x_ptr,  # (n, D): the rows whose gradient is finished
    part_ptr,  # (slots, n, D)
    slots,
    out_ptr,
    n,
    D,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    mask = (rows < n)[:, None] & (d < D)[None, :]
    offsets = rows[:, None] * D + d[None, :]
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    for slot in range(0, slots):
        # (ROWS, WIDTH)
        gradient += tl.load(part_ptr + tl.cast(slot, tl.int64) * n * D + offsets, mask=mask, other=0.0)
    if NORMALIZE:
        # (ROWS, WIDTH)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        squares = tl.sum(x * x, 1)
        scale = inverse_norm(squares)
        gradient = through_normalization(gradient, x * scale[:, None], squares, scale)
    # (ROWS, WIDTH)
    tl.store(out_ptr + offsets, gradient.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def supcon_finish_kernel(
    x_ptr,
    ref_ptr,
    part_ptr,
    slots,
    ref_part_ptr,
    ref_slots,
    dx_ptr,
    dref_ptr,
    grad_loss_ptr,  # (M,)
    stats_ptr,  # (4, M)
    dscale_ptr,
    M,
    R,
    D,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEARCH: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid == 0:
        total = tl.zeros((SEARCH,), tl.float32)
        for first in range(0, M, SEARCH):
            # (SEARCH,) each
            i = first + tl.arange(0, SEARCH)
            mean = tl.load(stats_ptr + M + i, mask=i < M, other=0.0)
            total += mean * tl.load(grad_loss_ptr + i, mask=i < M, other=0.0)
        tl.store(dscale_ptr, tl.sum(total))
    row_programs = 0
    if dx_ptr is not None:
        row_programs += tl.cdiv(M, ROWS)
        if pid < row_programs:
            finish_rows(pid, x_ptr, part_ptr, slots, dx_ptr, M, D, NORMALIZE, ROWS, WIDTH)
    if dref_ptr is not None:  # noqa: SIM102 - the first condition is one of compilation
        if pid >= row_programs:
            finish_rows(
                pid - row_programs, ref_ptr, ref_part_ptr, ref_slots, dref_ptr, R, D, NORMALIZE, ROWS, WIDTH
            )


@on_own_device
def supcon_bwd(
    grad_loss: Tensor,
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    ref_features: Tensor | None,
    ref_labels: Tensor | None,
    normalize: bool,
    stats: Tensor,
    class_rows: Tensor,
    norms: Tensor,
    need_features: bool,
    need_ref: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``sum(grad_loss * loss)`` of :func:`supcon_fwd`.

    The operator ``cmx_fast::supcon_bwd`` for CUDA; ``class_rows`` is accepted and ignored.

    Args:
        grad_loss: (M,) float32. features, labels, logit_scale, references and ``normalize``: as in the forward pass.
        stats, norms: what the forward pass returned.

    Returns:
        dfeatures and dref in the features' dtype, each (0,) when not needed, and the 0-d float32 dscale.

    Memory: the gradients in float32, times the number of column splits where few rows would leave the chip idle.
    Cost: two M x R x D products per needed side, more for features wider than a program's output.
    """
    check_dtype(features)
    grad_loss, features, labels, ref_features, ref_labels, stats, norms = contiguous(
        grad_loss, features, labels, ref_features, ref_labels, stats, norms
    )
    m, width = features.shape
    r = 0 if ref_features is None else len(ref_features)
    need_ref = need_ref and ref_features is not None
    dfeatures = torch.empty_like(features) if need_features else features.new_empty(0)
    dref = torch.empty_like(ref_features) if need_ref else features.new_empty(0)
    dscale = torch.empty_like(logit_scale)
    if m == 0:
        return dfeatures.zero_(), dref.zero_(), dscale.zero_()
    rows, columns = sides(features, ref_features, norms, normalize)
    part = ref_part = None
    if need_features:
        part = row_gradient(rows, labels, columns, ref_labels, stats, grad_loss, logit_scale, of_rows=True)
    if need_ref:
        assert columns is not None
        ref_part = row_gradient(
            columns, ref_labels, rows, labels, stats, grad_loss, logit_scale, of_rows=False
        )
    rows_per_program, padded = finish_tile(width)
    programs = (ceil_div(m, rows_per_program) if need_features else 0) + (
        ceil_div(r, rows_per_program) if need_ref else 0
    )
    supcon_finish_kernel[(max(1, programs),)](
        features,
        ref_features,
        part,
        0 if part is None else len(part),
        ref_part,
        0 if ref_part is None else len(ref_part),
        dfeatures if need_features else None,
        dref if need_ref else None,
        grad_loss,
        stats,
        dscale,
        m,
        r,
        width,
        NORMALIZE=normalize,
        ROWS=rows_per_program,
        WIDTH=padded,
        SEARCH=4096,
    )
    return dfeatures, dref, dscale
