"""The sigmoid contrastive loss on the GPU: launchers of the forward pass and of the backward pass.

Forward: norms (only to normalise), a visit of all pairs for every row's sums and the queries' gradient
(kernels/sigmoid_contrastive/pairs.py), then the losses. Backward: norms, a visit with the roles exchanged for the keys'
gradient, then a last kernel for what is left of both. Two launches each, three to normalise, and one more forward where
few queries share their columns out to several programs.

A program of the loss kernel owns a span of rows, BLOCK at a time: all rows of a sample where their losses are summed,
else BLOCK. A program of the last kernel owns ROWS whole rows of one side, (ROWS, WIDTH) with WIDTH >= D: it adds their
slots in their order, multiplies by the incoming gradient, undoes the normalisation with all features at hand and writes
them once in the inputs' dtype. Program 0 also sums dscale and dbias.

Why it is right: the queries' gradient of a sum over their pairs is kept, and a factor per row multiplies it afterwards;
the keys' takes the factors in its tiles. Nothing is read back to the host: a scale that is not positive gives NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.norms import (
    allocate_rows,
    finish_tile,
    inverse_norm,
    measure,
    through_normalization,
)
from cmx_fast.kernels.sigmoid_contrastive.pairs import Sides, visit_pairs

BLOCK = 256  # rows of the loss kernel at a time
SEARCH = 1024  # rows of dscale and dbias at a time


@triton.jit
def nan_unless_positive(scale):
    return tl.where(scale > 0, 0.0, float("nan"))


@triton.jit
def sigmoid_contrastive_loss_kernel(
    scale_ptr,
    sum_ptr,  # (slots, 3, B, N), as visit_pairs leaves them
    slots,
    loss_ptr,  # out, (B, N) or, if SUMMED, (B,)
    slopes_ptr,  # out, (2, B, N)
    n_batch,
    N,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = 1 if SUMMED else tl.cdiv(N, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    stop = N if SUMMED else first + BLOCK
    slot_rows = tl.cast(n_batch, tl.int64) * N
    unusable = nan_unless_positive(tl.load(scale_ptr))
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(first, stop, BLOCK):
        # (BLOCK,) each, as all that follows.
        i = begin + tl.arange(0, BLOCK)
        inside = i < N
        loss = tl.zeros((BLOCK,), tl.float32)
        weighted = tl.zeros((BLOCK,), tl.float32)
        slope = tl.zeros((BLOCK,), tl.float32)
        for slot in range(0, slots):
            part = sum_ptr + slot * 3 * slot_rows + batch * N + i
            loss += tl.load(part, mask=inside, other=0.0)
            weighted += tl.load(part + slot_rows, mask=inside, other=0.0)
            slope += tl.load(part + 2 * slot_rows, mask=inside, other=0.0)
        # A derivative is NaN where a similarity is not finite, and 0 times it makes the loss NaN.
        loss += 0 * slope
        slopes = slopes_ptr + batch * N + i
        tl.store(slopes, weighted + unusable, mask=inside)
        tl.store(slopes + slot_rows, slope + unusable, mask=inside)
        if SUMMED:
            total += loss
        else:
            tl.store(loss_ptr + batch * N + i, loss + unusable, mask=inside)
    if SUMMED:
        tl.store(loss_ptr + batch, tl.sum(total) + unusable)


@triton.jit
def finish_rows(
    pid,
    x_ptr,  # (B, n, D): the rows whose gradient is finished
    part_ptr,  # (slots, B, n, D)
    slots,
    weight_ptr,  # the incoming gradient, (B, n) or, if SUMMED, (B,); None: it is in the parts
    scale,
    out_ptr,
    n_rows,  # B * n
    n,
    D,
    SUMMED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    inside = rows < n_rows
    mask = inside[:, None] & (d < D)[None, :]
    offsets = rows[:, None] * D + d[None, :]
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    for slot in range(0, slots):
        # (ROWS, WIDTH)
        gradient += tl.load(part_ptr + tl.cast(slot, tl.int64) * n_rows * D + offsets, mask=mask, other=0.0)
    if weight_ptr is not None:
        # (ROWS,)
        weight = tl.load(weight_ptr + (rows // n if SUMMED else rows), mask=inside, other=0.0)
        gradient *= weight[:, None]
    if NORMALIZE:
        # (ROWS, WIDTH)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        squares = tl.sum(x * x, 1)
        inverse = inverse_norm(squares)
        gradient = through_normalization(gradient, x * inverse[:, None], squares, inverse)
    gradient += nan_unless_positive(scale)
    # (ROWS, WIDTH)
    tl.store(out_ptr + offsets, gradient.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sigmoid_contrastive_finish_kernel(
    query_ptr,
    key_ptr,
    query_part_ptr,
    query_slots,
    key_part_ptr,
    key_slots,
    grad_ptr,  # (B, N) or, if SUMMED, (B,)
    slopes_ptr,  # (2, B, N)
    scale_ptr,
    dquery_ptr,
    dkey_ptr,
    dscale_ptr,
    dbias_ptr,
    n_queries,  # B * N
    n_keys,  # B * M
    N,
    M,
    D,
    SUMMED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEARCH: tl.constexpr,
):
    pid = tl.program_id(0)
    scale = tl.load(scale_ptr)
    if pid == 0:
        by_scale = tl.zeros((SEARCH,), tl.float32)
        by_bias = tl.zeros((SEARCH,), tl.float32)
        for first in range(0, n_queries, SEARCH):
            # (SEARCH,) each
            i = tl.cast(first, tl.int64) + tl.arange(0, SEARCH)
            inside = i < n_queries
            weight = tl.load(grad_ptr + (i // N if SUMMED else i), mask=inside, other=0.0)
            by_scale += weight * tl.load(slopes_ptr + i, mask=inside, other=0.0)
            by_bias += weight * tl.load(slopes_ptr + n_queries + i, mask=inside, other=0.0)
        tl.store(dscale_ptr, tl.sum(by_scale))
        tl.store(dbias_ptr, tl.sum(by_bias))
    query_programs = 0
    if dquery_ptr is not None:
        query_programs += tl.cdiv(n_queries, ROWS)
        if pid < query_programs:
            finish_rows(
                pid, query_ptr, query_part_ptr, query_slots, grad_ptr, scale, dquery_ptr, n_queries, N, D, SUMMED,
                NORMALIZE, ROWS, WIDTH,
            )  # fmt: skip
    if dkey_ptr is not None:  # noqa: SIM102 - the first condition is one of compilation
        if pid >= query_programs:
            finish_rows(
                pid - query_programs, key_ptr, key_part_ptr, key_slots, grad_ptr if SUMMED else None, scale, dkey_ptr,
                n_keys, M, D, SUMMED, NORMALIZE, ROWS, WIDTH,
            )  # fmt: skip


@on_own_device
def sigmoid_contrastive_fwd(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    normalize: bool,
    summed: bool,
    keep_query: bool,
    keep_key: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of the queries over all keys, and what the backward pass needs.

    The operator ``cmx_fast::sigmoid_contrastive_fwd`` for CUDA; ``keep_key`` is accepted and ignored, the backward pass
    makes the keys' gradient.

    Args:
        query: (B, N, D), key: (B, M, D), both float32, bfloat16 or float16.
        logit_scale, logit_bias: 0-d float32 on the device; a scale that is not positive gives NaN.
        query_ids: (B, N), key_ids: (B, M) int64, equal for positives; None: pairs of equal indices are.
        summed: give a sample's sum of the losses, not each query's.

    Returns:
        loss (B, N) or (B,); slopes (2, B, N): the derivatives of each query's loss by scale and bias; with
        ``keep_query`` the gradient (B, N, D) of the losses' sum by the queries as they are multiplied, after
        normalisation, else an empty tensor; and an empty tensor. All float32.

    Memory: 3 floats per row and column split (at most 32), D more with ``keep_query``, and a chunk of derivatives for
    wide features. Cost: one N x M x D product, two with ``keep_query``, at small sizes more for features wider than a
    program's output. No synchronisation, no atomics.
    """
    check_dtype(query)
    query, key, query_ids, key_ids = contiguous(query, key, query_ids, key_ids)
    (batch, n, width), m = query.shape, key.shape[1]
    loss = logit_scale.new_zeros(batch) if summed else logit_scale.new_zeros(batch, n)
    slopes = logit_scale.new_zeros(2, batch, n)
    kept = logit_scale.new_zeros((batch, n, width) if keep_query else 0)
    nothing = logit_scale.new_empty(0)
    if batch * n * m == 0:
        return loss, slopes, kept, nothing
    queries, keys = allocate_rows(query, normalize, False), allocate_rows(key, normalize, False)
    measure([queries, keys])
    sums, parts = visit_pairs(
        Sides(queries, query_ids),
        Sides(keys, key_ids),
        logit_scale,
        logit_bias,
        sums=True,
        gradient=keep_query,
    )
    assert sums is not None
    blocks = batch if summed else batch * ceil_div(n, BLOCK)
    sigmoid_contrastive_loss_kernel[(blocks,)](
        logit_scale, sums, len(sums), loss, slopes, batch, n, SUMMED=summed, BLOCK=BLOCK
    )
    if parts is not None:
        kept = parts[0] if len(parts) == 1 else parts.sum(0)
    return loss, slopes, kept, nothing


@on_own_device
def sigmoid_contrastive_bwd(
    grad_loss: Tensor,
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    normalize: bool,
    summed: bool,
    slopes: Tensor,
    query_gradient: Tensor,
    key_gradient: Tensor,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``sum(grad_loss * loss)`` of :func:`sigmoid_contrastive_fwd`.

    The operator ``cmx_fast::sigmoid_contrastive_bwd`` for CUDA; ``key_gradient`` is accepted and ignored.

    Args:
        grad_loss: (B, N) or (B,) float32. slopes, query_gradient: what the forward pass returned; without the latter it
            is made here. The others are those of the forward pass.

    Returns:
        dquery and dkey in the inputs' dtype, each (0,) when not needed, and the 0-d float32 dscale and dbias.

    Memory: the gradients in float32, times the number of column splits where few rows would leave the chip idle. Cost:
    two N x M x D products for the keys, at small sizes more for features wider than a program's output.
    """
    check_dtype(query)
    grad_loss, query, key, query_ids, key_ids, slopes, query_gradient = contiguous(
        grad_loss, query, key, query_ids, key_ids, slopes, query_gradient
    )
    (batch, n, width), m = query.shape, key.shape[1]
    dquery = torch.empty_like(query) if need_query else query.new_empty(0)
    dkey = torch.empty_like(key) if need_key else key.new_empty(0)
    dscale, dbias = torch.empty_like(logit_scale), torch.empty_like(logit_bias)
    if batch * n * m == 0:
        return dquery.zero_(), dkey.zero_(), dscale.zero_(), dbias.zero_()
    query_parts = query_gradient[None] if query_gradient.numel() else None
    made = [need_query and query_parts is None, need_key]
    queries, keys = (allocate_rows(x, normalize and any(made), False) for x in (query, key))
    measure([queries, keys])
    one, other = Sides(queries, query_ids), Sides(keys, key_ids)
    if made[0]:
        query_parts = visit_pairs(one, other, logit_scale, logit_bias, sums=False, gradient=True)[1]
    key_parts = None
    if need_key:
        weight = None if summed else grad_loss
        key_parts = visit_pairs(
            other, one, logit_scale, logit_bias, sums=False, gradient=True, weight=weight
        )[1]
    rows_per_program, padded = finish_tile(width)
    programs = sum(
        ceil_div(batch * rows, rows_per_program)
        for rows, needed in ((n, need_query), (m, need_key))
        if needed
    )
    sigmoid_contrastive_finish_kernel[(max(1, programs),)](
        query,
        key,
        query_parts,
        0 if query_parts is None else len(query_parts),
        key_parts,
        0 if key_parts is None else len(key_parts),
        grad_loss,
        slopes,
        logit_scale,
        dquery if need_query else None,
        dkey if need_key else None,
        dscale,
        dbias,
        batch * n,
        batch * m,
        n,
        m,
        width,
        SUMMED=summed,
        NORMALIZE=normalize,
        ROWS=rows_per_program,
        WIDTH=padded,
        SEARCH=SEARCH,
    )
    return dquery, dkey, dscale, dbias
