"""Last kernel of InfoNCE's backward pass, O((N + M) D): sum of the splits, positives, normalisation, dscale.

Tile and owner: a program owns ROWS whole rows of one side, (ROWS, WIDTH) with WIDTH >= D, so that the projection of the
normalisation has all features at hand; queries come first in the grid, then keys. It adds its rows' slots in their
order, the positives' gradient in float32, undoes the normalisation and writes the rows once in the inputs' dtype.
Program 0 also sums dscale.

Why it is right: a query has one positive, so it reads its partner's row. A key may be the target of any number of
queries: its program searches all targets of the sample for its rows, SEARCH at a time, and adds the hits in the order
of their queries. Nothing is added atomically, and a target out of range is nobody's.
"""

import triton
import triton.language as tl

from cmx_fast.kernels.common.norms import inverse_norm, through_normalization


@triton.jit
def load_row(ptr, row, D, NORMALIZE: tl.constexpr, WIDTH: tl.constexpr):
    """(WIDTH,) float32 row of a matrix, normalised if asked for."""
    d = tl.arange(0, WIDTH)
    x = tl.load(ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    if NORMALIZE:
        x *= inverse_norm(tl.sum(x * x))
    return x


@triton.jit
def add_positive(gradient, x, y, factor, SIMILARITY: tl.constexpr):
    """``gradient`` plus that of a positive pair (x, y) with respect to x."""
    if SIMILARITY == "dot":
        gradient += factor * y
    else:
        gradient += factor * (y - x)
    return gradient


@triton.jit
def positive_factor(positive_ptr, grad_ptr, row_stats_ptr, col_stats_ptr, scale, batch, index, N, inside):
    """(ROWS,) factors of the positives of queries ``index`` of a sample.

    Read from ``positive_ptr`` where the weights kernel has made them, else from the forward pass's statistics, whose
    fourth row is the softmax's weight: then query and key have equal indices, and ``index`` serves both.
    """
    if positive_ptr is not None:
        factor = tl.load(positive_ptr + batch * N + index, mask=inside, other=0.0)
    else:
        weight = tl.load(row_stats_ptr + (batch * 4 + 3) * N + index, mask=inside, other=0.0)
        if col_stats_ptr is not None:
            weight += tl.load(col_stats_ptr + (batch * 4 + 3) * N + index, mask=inside, other=0.0)
        factor = -scale * weight * tl.load(grad_ptr + batch * N + index, mask=inside, other=0.0)
    return factor


@triton.jit
def scale_gradient(grad_ptr, stats_ptr, index, N, inside):
    """(SEARCH,) contributions of the queries ``index`` of all samples to dscale, in one direction."""
    stats = stats_ptr + index // N * 4 * N + index % N
    pull = tl.load(stats + 2 * N, mask=inside, other=0.0) * tl.load(stats + 3 * N, mask=inside, other=0.0)
    return pull * tl.load(grad_ptr + index, mask=inside, other=0.0)


@triton.jit
def finish_rows(
    pid,
    x_ptr,  # (B, n, D): the rows whose gradient is finished
    y_ptr,  # (B, m, D): the other side of the positives
    target_ptr,  # (B, N) int64 or None
    positive_ptr,  # (B, N); None: positive_factor makes them of the next four
    grad_ptr,
    row_stats_ptr,
    col_stats_ptr,
    scale,
    part_ptr,  # (slots, B, n, D): from the matrix kernel
    sum_ptr,
    slots,
    mean_ptr,  # (B, n, D) mean rows of the banks that push queries away, or None
    out_ptr,
    n_batch,
    n,
    m,
    D,
    QUERY: tl.constexpr,
    SIMILARITY: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEARCH: tl.constexpr,
):
    blocks = tl.cdiv(n, ROWS)
    batch = (pid // blocks).to(tl.int64)
    rows = pid % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    inside = rows < n
    mask = inside[:, None] & (d < D)[None, :]
    flat = batch * n + rows
    offsets = flat[:, None] * D + d[None, :]
    # (ROWS, WIDTH)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if NORMALIZE:
        squares = tl.sum(x * x, 1)
        inverse = inverse_norm(squares)
        x *= inverse[:, None]

    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    slot_rows = tl.cast(n_batch, tl.int64) * n
    if part_ptr is not None:
        for slot in range(0, slots):
            # (ROWS, WIDTH), (ROWS,)
            gradient += tl.load(part_ptr + slot * slot_rows * D + offsets, mask=mask, other=0.0)
            if SIMILARITY != "dot":
                gradient -= tl.load(sum_ptr + slot * slot_rows + flat, mask=inside, other=0.0)[:, None] * x

    y_ptr += batch * m * D
    if QUERY or target_ptr is None:
        if QUERY:
            partner = tl.load(target_ptr + flat, mask=inside, other=-1) if target_ptr is not None else rows
            factor = positive_factor(
                positive_ptr, grad_ptr, row_stats_ptr, col_stats_ptr, scale, batch, rows, n, inside
            )
        else:
            partner = rows
            factor = positive_factor(
                positive_ptr, grad_ptr, row_stats_ptr, col_stats_ptr, scale, batch, rows, m, rows < m
            )
        paired = inside & (partner >= 0) & (partner < m)
        y_mask = paired[:, None] & (d < D)[None, :]
        # (ROWS, WIDTH): each row's partner
        y = tl.load(y_ptr + partner.to(tl.int64)[:, None] * D + d[None, :], mask=y_mask, other=0.0).to(
            tl.float32
        )
        if NORMALIZE:
            y *= inverse_norm(tl.sum(y * y, 1))[:, None]
        if mean_ptr is not None:
            y -= tl.load(mean_ptr + offsets, mask=mask, other=0.0)
        gradient = add_positive(gradient, x, y, factor[:, None], SIMILARITY)
    else:
        # Keys with targets: the hits of these ROWS keys, in the order of the queries.
        for first in range(0, m, SEARCH):
            # (SEARCH,)
            index = first + tl.arange(0, SEARCH)
            t = tl.load(target_ptr + batch * m + index, mask=index < m, other=-1)
            t -= pid % blocks * ROWS
            hit = (t >= 0) & (t < ROWS)
            for _ in range(0, tl.sum(hit.to(tl.int32))):
                i = tl.min(tl.where(hit, index, first + SEARCH))
                hit = hit & (index != i)
                row = tl.sum(tl.where(index == i, t, 0))
                # One number, and (WIDTH,): the query's factor and its row.
                factor = tl.load(positive_ptr + batch * m + i)
                y = load_row(y_ptr, tl.cast(i, tl.int64), D, NORMALIZE, WIDTH)
                own = (tl.arange(0, ROWS) == row)[:, None]
                gradient = tl.where(own, add_positive(gradient, x, y[None, :], factor, SIMILARITY), gradient)

    if NORMALIZE:
        gradient = through_normalization(gradient, x, squares, inverse)
    # (ROWS, WIDTH)
    tl.store(out_ptr + offsets, gradient.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def info_nce_finish_kernel(
    query_ptr,
    key_ptr,
    target_ptr,
    positive_ptr,
    grad_ptr,  # (B, N) or None where positive_ptr is given
    row_stats_ptr,  # (B, 4, N), as info_nce_fwd leaves them
    col_stats_ptr,  # (B, 4, M) or None
    scale_ptr,
    query_part_ptr,
    query_sum_ptr,
    query_slots,
    key_part_ptr,
    key_sum_ptr,
    key_slots,
    mean_ptr,  # (B, N, D) or None
    dquery_ptr,
    dkey_ptr,
    dscale_part_ptr,
    dscale_ptr,
    n_dscale_parts,
    n_batch,
    N,
    M,
    D,
    SIMILARITY: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEARCH: tl.constexpr,
):
    pid = tl.program_id(0)
    scale = tl.load(scale_ptr)
    if pid == 0:
        total = tl.zeros((SEARCH,), tl.float32)
        if dscale_part_ptr is not None:
            for first in range(0, n_dscale_parts, SEARCH):
                index = first + tl.arange(0, SEARCH)
                total += tl.load(dscale_part_ptr + index, mask=index < n_dscale_parts, other=0.0)
        else:
            n_queries = tl.cast(n_batch, tl.int64) * N
            for first in range(0, n_queries, SEARCH):
                index = first + tl.arange(0, SEARCH)
                total += scale_gradient(grad_ptr, row_stats_ptr, index, N, index < n_queries)
                if col_stats_ptr is not None:
                    total += scale_gradient(grad_ptr, col_stats_ptr, index, N, index < n_queries)
        tl.store(dscale_ptr, tl.sum(total))
    query_programs = 0
    if dquery_ptr is not None:
        query_programs += n_batch * tl.cdiv(N, ROWS)
        if pid < query_programs:
            finish_rows(
                pid, query_ptr, key_ptr, target_ptr, positive_ptr, grad_ptr, row_stats_ptr, col_stats_ptr, scale,
                query_part_ptr, query_sum_ptr, query_slots, mean_ptr, dquery_ptr, n_batch, N, M, D,
                True, SIMILARITY, NORMALIZE, ROWS, WIDTH, SEARCH,
            )  # fmt: skip
    if dkey_ptr is not None:  # noqa: SIM102 - the first condition is one of compilation
        if pid >= query_programs:
            finish_rows(
                pid - query_programs, key_ptr, query_ptr, target_ptr, positive_ptr, grad_ptr, row_stats_ptr,
                col_stats_ptr, scale, key_part_ptr, key_sum_ptr, key_slots, None, dkey_ptr, n_batch, M, N, D,
                False, SIMILARITY, NORMALIZE, ROWS, WIDTH, SEARCH,
            )  # fmt: skip
