"""InfoNCE on the GPU: launchers of the forward pass and of the backward pass.

Forward, in two or three launches, one more for a symmetric loss with targets:

    prepare   norms (only for distances, or to normalise many rows), the owners of a permutation's keys; often neither
    scan      statistics of the logits of the queries and, if symmetric, of the keys: kernels/common/scan.py
    loss      merges the splits' statistics, adds the positives and leaves what the backward pass needs

A program of the loss kernel owns BLOCK queries, their positives and, if symmetric, the statistics of these positives'
keys: with a permutation as target every key has exactly one program, so each row of col_stats is written once. Banks
alone leave their softmax-weighted mean rows as well: Note [Banks alone], kernels/info_nce/banks.py.

Why it is right: a positive meets the others' log-sum-exp in softplus, in float32: Note [Positives stay outside],
kernels/common/positives.py. Nothing is read back to the host: an unusable argument (a scale that is not positive, a
target out of range or no permutation) gives NaN.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.arguments import candidate_counts, check_dtype, contiguous, on_own_device
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    add_partials,
    base_two,
    empty_statistics,
    log_sum_above,
    softplus,
    weighted_mean,
)
from cmx_fast.kernels.common.norms import (
    DEPTH,
    ROWS_PER_PROGRAM,
    allocate_rows,
    measure_rows,
    norm_arguments,
    norm_programs,
    worth_measuring_in_place,
)
from cmx_fast.kernels.common.positives import positive_similarity
from cmx_fast.kernels.common.scan import Partials, scan
from cmx_fast.kernels.info_nce.backward import info_nce_bwd
from cmx_fast.kernels.info_nce.banks import scan_banks, store_mean_rows

__all__ = ["info_nce_bwd", "info_nce_fwd"]

BLOCK = 32  # queries of one program outside the matrix work
# Features of a positive pair at a time: 64 take over 200 registers where rows are not aligned.
LOSS_DEPTH = 32


@triton.jit
def info_nce_prepare_kernel(
    matrices,
    inverses,
    squared,
    counts,
    D,
    target_ptr,  # (B, N) int64
    owner_ptr,  # (B, N): the query whose positive is this key
    n_queries,  # B * N
    N,
    N_MATRICES: tl.constexpr,
    OWNERS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if OWNERS:
        owner_programs = tl.cdiv(n_queries, BLOCK)
        if pid < owner_programs:
            i = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            # (BLOCK,)
            t = tl.load(target_ptr + i, mask=i < n_queries, other=-1)
            # (BLOCK,): of several queries with one target the last to write wins, and the others' losses become NaN.
            tl.store(owner_ptr + i // N * N + t, i % N, mask=(t >= 0) & (t < N))
        pid -= owner_programs
    measure_rows(pid, matrices, inverses, squared, counts, D, N_MATRICES, ROWS, DEPTH)


@triton.jit
def nan_unless_usable(x, valid, scale):
    """``x``, but NaN for a query without a positive, and for all with a scale that is not positive."""
    return tl.where(scale > 0, tl.where(valid, x, float("nan")), float("nan"))


@triton.jit
def store_direction(
    stats,  # of the direction's own side, at the pairs' rows
    n,
    maximum,
    total,
    weighted,
    plain,
    u,
    valid,
    mask,
    scale,
    share,
    smoothing,
    candidates,
    SMOOTH: tl.constexpr,
):
    """Store one direction's (BLOCK,) statistics and return its losses.

    The four rows of the statistics: largest similarity; weight of the softmax's gradient over the sum of the
    exponentials (with label smoothing that sum itself); mean similarity less the positive's; the weight (with label
    smoothing the sum of the similarities). Without smoothing the backward pass then needs nothing but the incoming
    gradient.
    """
    margin = log_sum_above(u, maximum, total, scale)
    mean = weighted_mean(total, weighted)
    tl.store(stats, maximum, mask=mask)
    tl.store(stats + 2 * n, mean - u, mask=mask)
    # 0 * x: infinities that the exponential swallowed.
    loss = softplus(margin) + 0 * mean + 0 * u
    if SMOOTH:
        tl.store(stats + n, total, mask=mask)
        tl.store(stats + 3 * n, plain, mask=mask)
        loss += smoothing * scale * (u - (plain + u) / candidates)
    else:
        weight = share * nan_unless_usable(tl.sigmoid(margin), valid, scale)
        # Without candidates the weight is 0, or NaN.
        tl.store(stats + n, tl.where(total == 0, weight, weight / total), mask=mask)
        tl.store(stats + 3 * n, weight, mask=mask)
    return loss


@triton.jit
def info_nce_loss_kernel(
    query_ptr,
    key_ptr,
    target_ptr,
    owner_ptr,
    scale_ptr,
    row_part_ptr,  # partial statistics of the queries, None without negatives
    row_slots,
    col_part_ptr,  # of the keys
    col_slots,
    sum_ptr,  # (row_slots, B * N, D) partial sums of the banks' rows, or None
    mean_ptr,  # out, (B, N, D)
    loss_ptr,  # out, (B, N)
    row_stats_ptr,  # out, (B, 4, N): the rows of store_direction
    col_stats_ptr,  # out, (B, 4, M): the same of the keys
    n_queries,  # B * N
    n_keys,  # B * M
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
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_queries
    batch = i // N
    position = i % N
    # (BLOCK,) each, as all that follows.
    t = tl.load(target_ptr + i, mask=inside, other=0) if target_ptr is not None else position
    valid = (t >= 0) & (t < M)
    paired = inside & valid
    t_flat = batch * M + t
    scale = tl.load(scale_ptr)
    if owner_ptr is not None:
        # Two queries with one positive leave a key without any: the key direction then has no meaning.
        valid = valid & (tl.load(owner_ptr + t_flat, mask=paired, other=-1) == position)
    u = positive_similarity(query_ptr, key_ptr, i, t_flat, paired, D, SIMILARITY, NORMALIZE, BLOCK, DEPTH)
    scale2 = base_two(scale)

    maximum, total, weighted, plain = empty_statistics(BLOCK)
    if row_part_ptr is not None:
        maximum, total, weighted, plain = add_partials(
            maximum,
            total,
            weighted,
            plain,
            row_part_ptr,
            row_slots,
            n_queries,
            i,
            inside,
            scale2,
            SMOOTH,
            BLOCK,
        )
    if sum_ptr is not None:
        store_mean_rows(
            mean_ptr,
            row_part_ptr,
            sum_ptr,
            row_slots,
            maximum,
            total,
            scale2,
            n_queries,
            D,
            i,
            inside,
            BLOCK,
            DEPTH,
        )
    share = 0.5 if SYMMETRIC else 1.0  # of the loss that this direction is
    loss = store_direction(
        row_stats_ptr + batch * 4 * N + position, N, maximum, total, weighted, plain, u, valid, inside, scale,
        share, smoothing, row_candidates, SMOOTH,
    )  # fmt: skip
    if SYMMETRIC:
        maximum, total, weighted, plain = empty_statistics(BLOCK)
        if col_part_ptr is not None:
            maximum, total, weighted, plain = add_partials(
                maximum,
                total,
                weighted,
                plain,
                col_part_ptr,
                col_slots,
                n_keys,
                t_flat,
                paired,
                scale2,
                SMOOTH,
                BLOCK,
            )
        col_loss = store_direction(
            col_stats_ptr + batch * 4 * M + t, M, maximum, total, weighted, plain, u, valid, paired, scale,
            share, smoothing, col_candidates, SMOOTH,
        )  # fmt: skip
        loss = (loss + col_loss) / 2
    # (BLOCK,)
    tl.store(loss_ptr + i, nan_unless_usable(loss, valid, scale), mask=inside)


@on_own_device
def info_nce_fwd(
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
    cache: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-query InfoNCE losses and the softmax statistics that the backward pass needs.

    The operator ``cmx_fast::info_nce_fwd`` for CUDA.

    Args:
        query: (B, N, D), key: (B, M, D), both float32, bfloat16 or float16; bank: (K, D) tensors of that dtype.
        logit_scale: 0-d float32 on the device; not positive gives NaN.
        target: (B, N) int64 or None; an entry out of range, or with ``symmetric`` no permutation, gives NaN.
        cache: with ``in_batch`` False (banks alone against the queries), keep the softmax-weighted mean of their rows:
            Note [Banks alone], kernels/info_nce/banks.py. Else ignored: the backward pass recomputes.

    Returns:
        loss (B, N), row_stats (B, 4, N), col_stats (B, 4, M if symmetric else 0), and the mean rows (B, N, D) or an
        empty tensor; all float32.

    Memory: 3 floats per row and column split (at most 32), D more for mean rows. Cost: one N x M x D product per
    direction, two for mean rows. Two to four launches, no synchronisation, no atomics.
    """
    check_dtype(query)
    query, key, target, *bank = contiguous(query, key, target, *bank)
    (batch, n, width), m = query.shape, key.shape[1]
    loss = logit_scale.new_empty(batch, n)
    row_stats = logit_scale.new_empty(batch, 4, n)
    col_stats = logit_scale.new_empty(batch, 4, m if symmetric else 0)
    means = cache and not in_batch
    saved = logit_scale.new_empty((batch, n, width) if means else 0)
    if batch * n == 0:
        return loss, row_stats, col_stats, saved
    distance = similarity != "dot"
    in_place = normalize and (means or worth_measuring_in_place(query, m, similarity))
    once = normalize and not in_place
    queries, keys = allocate_rows(query, once, distance), allocate_rows(key, once, distance)
    banks = [allocate_rows(rows, False, distance) for rows in bank]
    owner = torch.empty_like(target) if symmetric and target is not None else None
    measured = norm_arguments([queries, keys, *banks])
    programs = norm_programs(measured[-1]) + (ceil_div(batch * n, BLOCK) if owner is not None else 0)
    if programs:
        info_nce_prepare_kernel[(programs,)](
            *measured, width, target, owner, batch * n, n,
            len(measured[-1]), owner is not None, ROWS_PER_PROGRAM, DEPTH, BLOCK,
        )  # fmt: skip

    options = {
        "within": within,
        "similarity": similarity,
        "smooth": label_smoothing > 0,
        "measure": in_place,
    }
    row_part = col_part = Partials()
    sums = None
    if means:
        row_part, sums = scan_banks(queries, banks, logit_scale, measure=in_place)
    elif in_batch or banks or within:
        # Note [Two scans, not column sums], kernels/common/scan.py.
        together = symmetric and target is None
        row_part, col_part = scan(
            queries, keys if in_batch else None, banks, target, logit_scale,
            exclude="column of row", back=keys if together else None, **options,
        )  # fmt: skip
        if symmetric and not together:
            col_part, _ = scan(
                keys, queries if in_batch else None, banks, target, logit_scale,
                exclude="row of column", **options,
            )  # fmt: skip
    info_nce_loss_kernel[(ceil_div(batch * n, BLOCK),)](
        query,
        key,
        target,
        owner,
        logit_scale,
        *row_part,
        *col_part,
        sums,
        saved if means else None,
        loss,
        row_stats,
        col_stats,
        batch * n,
        batch * m,
        n,
        m,
        width,
        float(label_smoothing),
        *candidate_counts(n, m, bank, in_batch, within),
        SIMILARITY=similarity,
        SYMMETRIC=symmetric,
        NORMALIZE=normalize,
        SMOOTH=label_smoothing > 0,
        BLOCK=BLOCK,
        DEPTH=LOSS_DEPTH,
    )
    return loss, row_stats, col_stats, saved
