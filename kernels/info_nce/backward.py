"""Backward pass of InfoNCE: softmax weights, the matrix kernel, and the O(N D) rest.

    weights   the softmax of either direction times the incoming gradient; norms. O(N), (B, 3, N) and (B, 3, M)
    matrices  kernels/common/gradient_kernel.py, or kernels/info_nce/chunks.py for wide features
    finish    sum of the splits, positives, normalisation, dscale: kernels/info_nce/finish.py

One launch (finish) where the forward pass has kept mean rows of banks and positives have equal indices. Two (no
weights) for similarities that are plain inner products, with equal indices as positives and without smoothing: there
the forward pass has left weights that lack the incoming gradient alone. Else three, and four where the matrix kernels
of queries and keys differ.

A program of the weights kernel owns BLOCK queries and, with them, their keys' rows of col_softmax. Why it is right: see
Note [Positives stay outside], kernels/common/positives.py; a query whose target is out of range, and every query of a
scale that is not positive, multiplies NaN into what it writes.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import candidate_counts, check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.gradient import RowGradient, Softmax, row_gradient
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import log_sum_above
from cmx_fast.kernels.common.norms import (
    DEPTH,
    ROWS_PER_PROGRAM,
    Rows,
    allocate_rows,
    finish_tile,
    measure_rows,
    norm_arguments,
    norm_programs,
    worth_measuring_in_place,
)
from cmx_fast.kernels.common.positives import positive_similarity
from cmx_fast.kernels.info_nce.chunks import gradients_by_chunks, worth_info_nce_chunks
from cmx_fast.kernels.info_nce.finish import info_nce_finish_kernel

BLOCK = 32  # queries of one program of the weights


@triton.jit
def weigh_direction(
    stats,  # pointers to the forward pass's statistics of the pairs' rows
    softmax,  # pointers to the same rows of the result
    n,
    g,
    u,
    mask,
    scale,
    smoothing,
    candidates,
    SYMMETRIC: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """Store one direction's softmax; return its derivatives by the positives' logits and by the scale, (BLOCK,)."""
    # (BLOCK,) each: the rows of store_direction, kernels/info_nce/launchers.py.
    top = tl.load(stats, mask=mask, other=0.0)
    above = tl.load(stats + n, mask=mask, other=1.0)
    fourth = tl.load(stats + 3 * n, mask=mask, other=0.0)
    tl.store(softmax, top, mask=mask)
    if SMOOTH:
        if SYMMETRIC:
            g *= 0.5
        weight = g * tl.sigmoid(log_sum_above(u, top, above, scale))
        share = g * (smoothing / candidates)
        tl.store(softmax + n, tl.where(above == 0, weight, weight / above), mask=mask)
        tl.store(softmax + 2 * n, share, mask=mask)
        positive = g * smoothing - share - weight
        dscale = g * smoothing * u - share * (fourth + u)
    else:
        # The forward pass knew all but the incoming gradient.
        weight = g * fourth
        tl.store(softmax + n, g * above, mask=mask)
        positive = -weight
        dscale = tl.zeros_like(weight)
    return positive, dscale + weight * tl.load(stats + 2 * n, mask=mask, other=0.0)


@triton.jit
def info_nce_weights_kernel(
    grad_loss_ptr,  # (B, N)
    query_ptr,
    key_ptr,
    target_ptr,
    scale_ptr,
    row_stats_ptr,  # (B, 4, N)
    col_stats_ptr,  # (B, 4, M)
    row_softmax_ptr,  # out, (B, 3, N): largest similarity, weight by the sum above it, share of the smoothing
    col_softmax_ptr,  # out, (B, 3, M)
    positive_ptr,  # out, (B, N): factor of the positive's vector in the gradient
    dscale_part_ptr,  # out, one per program
    matrices,
    inverses,
    squared,
    counts,
    n_queries,
    N,
    M,
    D,
    smoothing,
    row_candidates,
    col_candidates,
    SIMILARITY: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SMOOTH: tl.constexpr,
    N_MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    weight_programs = tl.cdiv(n_queries, BLOCK)
    if pid < weight_programs:
        i = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n_queries
        batch = i // N
        position = i % N
        # (BLOCK,) each, as all that follows.
        t = tl.load(target_ptr + i, mask=inside, other=0) if target_ptr is not None else position
        valid = (t >= 0) & (t < M)
        paired = inside & valid
        t_flat = batch * M + t
        scale = tl.load(scale_ptr)
        u = positive_similarity(query_ptr, key_ptr, i, t_flat, paired, D, SIMILARITY, NORMALIZE, BLOCK, DEPTH)
        g = tl.load(grad_loss_ptr + i, mask=inside, other=0.0)
        g = tl.where(valid, g, float("nan"))
        g = tl.where(scale > 0, g, float("nan"))
        positive, dscale = weigh_direction(
            row_stats_ptr + batch * 4 * N + position, row_softmax_ptr + batch * 3 * N + position, N, g, u, inside,
            scale, smoothing, row_candidates, SYMMETRIC, SMOOTH,
        )  # fmt: skip
        if SYMMETRIC:
            col_positive, col_dscale = weigh_direction(
                col_stats_ptr + batch * 4 * M + t, col_softmax_ptr + batch * 3 * M + t, M, g, u, paired,
                scale, smoothing, col_candidates, SYMMETRIC, SMOOTH,
            )  # fmt: skip
            positive += tl.where(paired, col_positive, 0.0)
            dscale += tl.where(paired, col_dscale, 0.0)
        positive *= scale
        if SIMILARITY == "sql2":
            positive *= 2
        if SIMILARITY == "l2":
            # The subgradient at distance 0 is 0; "not == 0" lets a NaN through.
            positive = tl.where(u == 0, 0.0, positive / tl.where(u == 0, 1.0, -u))
        # (BLOCK,)
        tl.store(positive_ptr + i, positive, mask=inside)
        tl.store(dscale_part_ptr + pid, tl.sum(tl.where(inside, dscale, 0.0)))
    measure_rows(pid - weight_programs, matrices, inverses, squared, counts, D, N_MATRICES, ROWS, DEPTH)


@on_own_device
def info_nce_bwd(
    grad_loss: Tensor,
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor,
    bank: Sequence[Tensor],
    target: Tensor | None,
    in_batch: bool,
    within: bool,
    similarity: str,
    symmetric: bool,
    normalize: bool,
    label_smoothing: float,
    row_stats: Tensor,
    col_stats: Tensor,
    saved: Tensor,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``sum(grad_loss * loss)`` of :func:`info_nce_fwd`.

    The operator ``cmx_fast::info_nce_bwd`` for CUDA.

    Args:
        grad_loss: (B, N) float32. query, key, logit_scale, bank, target and the options: as in the forward pass.
        row_stats, col_stats, saved: what the forward pass returned.

    Returns:
        dquery and dkey in the inputs' dtype, each (0,) when not needed, and the 0-d float32 dscale.

    Memory: the gradients in float32, times the number of column splits where few rows would leave the chip idle.
    Cost: two N x M x D products per needed side, none where the forward pass has kept mean rows. Features wider than a
    program's output go through :mod:`cmx_fast.kernels.info_nce.chunks`: one product, and one per needed side.
    """
    check_dtype(query)
    grad_loss, query, key, target, row_stats, col_stats = contiguous(
        grad_loss, query, key, target, row_stats, col_stats
    )
    bank = contiguous(*bank)
    (batch, n, width), m = query.shape, key.shape[1]
    dquery = torch.empty_like(query) if need_query else query.new_empty(0)
    dkey = torch.empty_like(key) if need_key else key.new_empty(0)
    dscale = torch.empty_like(logit_scale)
    if batch * n == 0:
        return dquery.zero_(), dkey.zero_(), dscale.zero_()
    smooth, distance = label_smoothing > 0, similarity != "dot"
    means = saved if saved.numel() > 0 else None
    by_chunks = means is None and worth_info_nce_chunks(query, m, similarity)
    small = not by_chunks and worth_measuring_in_place(query, m, similarity)
    in_place = normalize and (means is not None or small)
    once = normalize and not in_place
    queries, keys = allocate_rows(query, once, distance), allocate_rows(key, once, distance)
    banks = [allocate_rows(rows, False, distance) for rows in bank]
    measured = norm_arguments([queries, keys, *banks])
    positive, dscale_part, grad = None, None, None
    if target is None and not smooth and not measured[-1]:
        row_softmax = Softmax(row_stats[:, 0], row_stats[:, 1])
        col_softmax = Softmax(col_stats[:, 0], col_stats[:, 1]) if symmetric else None
        grad = grad_loss
    else:
        row_softmax, col_softmax, positive, dscale_part = _weights(
            grad_loss, query, key, target, logit_scale, row_stats, col_stats, measured, similarity, symmetric,
            normalize, label_smoothing, candidate_counts(n, m, bank, in_batch, within),
        )  # fmt: skip

    query_part = key_part = RowGradient()
    if by_chunks:
        query_part, key_part = gradients_by_chunks(
            queries, row_softmax, keys, col_softmax, banks, target, logit_scale, grad,
            in_batch=in_batch, within=within, need_query=need_query, need_key=need_key,
        )  # fmt: skip
    elif means is None:
        query_part, key_part = _fused_gradients(
            queries, row_softmax, keys, col_softmax, banks, target, logit_scale, grad, similarity=similarity,
            in_batch=in_batch, within=within, measure=in_place, need_query=need_query, need_key=need_key,
        )  # fmt: skip

    rows_per_program, padded = finish_tile(width)
    query_programs = batch * ceil_div(n, rows_per_program) if need_query else 0
    key_programs = batch * ceil_div(m, rows_per_program) if need_key else 0
    info_nce_finish_kernel[(max(1, query_programs + key_programs),)](
        query,
        key,
        target,
        positive,
        grad,
        row_stats,
        col_stats if symmetric else None,
        logit_scale,
        *query_part,
        *key_part,
        means,
        dquery if need_query else None,
        dkey if need_key else None,
        dscale_part,
        dscale,
        0 if dscale_part is None else len(dscale_part),
        batch,
        n,
        m,
        width,
        SIMILARITY=similarity,
        NORMALIZE=normalize,
        ROWS=rows_per_program,
        WIDTH=padded,
        SEARCH=1024,
    )
    return dquery, dkey, dscale


def _weights(
    grad_loss: Tensor,
    query: Tensor,
    key: Tensor,
    target: Tensor | None,
    logit_scale: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    measured: tuple,
    similarity: str,
    symmetric: bool,
    normalize: bool,
    label_smoothing: float,
    candidates: tuple[float, float],
) -> tuple[Softmax, Softmax | None, Tensor, Tensor]:
    """Both directions' softmax gradients, factors of the positives and parts of dscale; fills norms too. One launch."""
    (batch, n, width), m = query.shape, key.shape[1]
    row_softmax, col_softmax = (x.new_empty(batch, 3, x.shape[2]) for x in (row_stats, col_stats))
    positive = logit_scale.new_empty(batch, n)
    programs = ceil_div(batch * n, BLOCK)
    dscale_part = logit_scale.new_empty(programs)
    info_nce_weights_kernel[(programs + norm_programs(measured[-1]),)](
        grad_loss,
        query,
        key,
        target,
        logit_scale,
        row_stats,
        col_stats,
        row_softmax,
        col_softmax,
        positive,
        dscale_part,
        *measured,
        batch * n,
        n,
        m,
        width,
        float(label_smoothing),
        *candidates,
        SIMILARITY=similarity,
        SYMMETRIC=symmetric,
        NORMALIZE=normalize,
        SMOOTH=label_smoothing > 0,
        N_MATRICES=len(measured[-1]),
        ROWS=ROWS_PER_PROGRAM,
        DEPTH=DEPTH,
        BLOCK=BLOCK,
        num_warps=16,  # with four or eight, some chip spills 8 bytes
    )

    def unbound(softmax: Tensor) -> Softmax:
        top, weight, share = softmax.unbind(1)
        return Softmax(top, weight, share if label_smoothing > 0 else None)

    return unbound(row_softmax), unbound(col_softmax) if symmetric else None, positive, dscale_part


def _fused_gradients(
    queries: Rows,
    row_softmax: Softmax,
    keys: Rows,
    col_softmax: Softmax | None,
    banks: Sequence[Rows],
    target: Tensor | None,
    logit_scale: Tensor,
    grad: Tensor | None,
    *,
    similarity: str,
    in_batch: bool,
    within: bool,
    measure: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[RowGradient, RowGradient]:
    """Both sides' gradients by a matrix kernel that keeps no logit.

    One launch where both sides have softmaxes and equal indices, else one per side.
    """
    query_part = key_part = RowGradient()
    symmetric = col_softmax is not None
    together = symmetric and target is None and need_query and need_key
    if need_query:
        query_part, key_part = row_gradient(
            queries, row_softmax, keys if in_batch else None, col_softmax, banks, target, logit_scale,
            exclude="column of row", cross_row=in_batch, within=within, similarity=similarity,
            measure=measure, grad=grad, back=keys if together else None,
        )  # fmt: skip
    if need_key and not together:
        key_part, _ = row_gradient(
            keys, col_softmax, queries if in_batch else None, row_softmax, banks if symmetric else [], target,
            logit_scale, exclude="row of column", cross_row=symmetric and in_batch, within=within and symmetric,
            similarity=similarity, measure=measure, grad=grad,
        )  # fmt: skip
    return query_part, key_part
