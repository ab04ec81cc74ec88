"""Softmax statistics of the rows (and, from the same tiles, of the columns) of a similarity matrix.

One kernel serves InfoNCE and SupCon. The candidates of a row are up to three kinds of column segments: *cross* (the rows
of the other tensor), any number of *banks*, and *within* (the other rows of the same tensor). A program owns a group of
row blocks and one split of the concatenated column tiles; it leaves partial statistics for its rows in slot ``split`` and,
with COLUMNS, for the cross columns in slot ``group``: one exponential per direction, one product for both, no atomics.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.logits import (
    LOG2E,
    empty_statistics,
    finite_shift,
    inner_products,
    load_tile,
    load_vector,
    merge_statistics,
    similarity,
)
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import SCAN_TILES, architecture, choose_tile, column_splits, dot_precision, upcast

MAX_GROUPS = 128


@triton.jit
def _scan_segment(
    maximum,
    total,
    weighted,
    plain,
    a,
    a_ptr,
    a_inv,
    a_sq,
    row0,
    n_a,
    c_ptr,
    c_inv_ptr,
    c_sq_ptr,
    n_c,
    tile_lo,
    tile_hi,
    excluded,
    scale2,
    col_part_ptr,
    col_stride,
    first_block,
    D,
    EXCLUDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    rows = row0 + tl.arange(0, ROWS)
    SCALE_COLS: tl.constexpr = c_inv_ptr is not None
    for tile in range(tile_lo, tile_hi):
        col0 = tile * COLS
        cols = col0 + tl.arange(0, COLS)
        product, _ = inner_products(
            a, a_ptr, row0, n_a, c_ptr, col0, n_c, D, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST
        )
        c_inv = load_vector(c_inv_ptr, col0, n_c, 1.0, COLS) if SCALE_COLS else None
        c_sq = load_vector(c_sq_ptr, col0, n_c, 0.0, COLS) if SIMILARITY != "dot" else None
        u = similarity(product, a_inv, c_inv, a_sq, c_sq, SIMILARITY, SCALE_ROWS, SCALE_COLS)
        keep = (cols < n_c)[None, :]
        if EXCLUDE:
            keep = keep & (cols[None, :] != excluded[:, None])
        z2 = tl.where(keep, u * scale2, float("-inf"))

        largest = tl.maximum(maximum, tl.max(z2, 1))
        shift = finite_shift(largest)
        e = tl.exp2(z2 - shift[:, None])
        factor = tl.exp2(maximum - shift)
        total = total * factor + tl.sum(e, 1)
        weighted = weighted * factor + tl.sum(e * u, 1)
        maximum = largest
        if SMOOTH:
            plain += tl.sum(tl.where(keep, u, 0.0), 1)

        if COLUMNS:
            z2 = tl.where((rows < n_a)[:, None], z2, float("-inf"))
            col_maximum = tl.max(z2, 0)
            e = tl.exp2(z2 - finite_shift(col_maximum)[None, :])
            col_total = tl.sum(e, 0)
            col_weighted = tl.sum(e * u, 0)
            slot = col_part_ptr + cols
            inside = cols < n_c
            if not first_block:
                col_maximum, col_total, col_weighted = merge_statistics(
                    col_maximum,
                    col_total,
                    col_weighted,
                    tl.load(slot, mask=inside, other=float("-inf")),
                    tl.load(slot + col_stride, mask=inside, other=0.0),
                    tl.load(slot + 2 * col_stride, mask=inside, other=0.0),
                )
            tl.store(slot, col_maximum, mask=inside)
            tl.store(slot + col_stride, col_total, mask=inside)
            tl.store(slot + 2 * col_stride, col_weighted, mask=inside)
            if SMOOTH:
                col_plain = tl.sum(tl.where(keep & (rows < n_a)[:, None], u, 0.0), 0)
                if not first_block:
                    col_plain += tl.load(slot + 3 * col_stride, mask=inside, other=0.0)
                tl.store(slot + 3 * col_stride, col_plain, mask=inside)
    return maximum, total, weighted, plain


@triton.jit
def scan_kernel(
    a_ptr,  # (B, n_a, D)
    a_inv_ptr,  # (B, n_a) inverse norms or None
    a_sq_ptr,  # (B, n_a) squared norms or None
    b_ptr,  # (B, n_b, D): the cross columns
    b_inv_ptr,
    b_sq_ptr,
    banks,  # tuple of (K, D), shared by the batch
    bank_sizes,
    bank_invs,
    bank_sqs,
    target_ptr,  # (B, n_a) int64: the cross column that is not a negative; None: the column of the same index
    scale_ptr,
    row_part_ptr,  # (n_splits, 3 or 4, B * n_a)
    col_part_ptr,  # (n_groups, 3 or 4, B * n_b)
    n_batch,
    n_a,
    n_b,
    D,
    n_groups,
    blocks_per_group,
    n_splits,
    N_BANKS: tl.constexpr,
    CROSS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WITHIN: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    # Neighbouring programs read the same columns: they meet in the L2 cache.
    group = pid % n_groups
    split = pid // n_groups % n_splits
    batch = (pid // n_groups // n_splits).to(tl.int64)
    N_STATS: tl.constexpr = 4 if SMOOTH else 3
    SCALE_ROWS: tl.constexpr = a_inv_ptr is not None
    scale2 = tl.load(scale_ptr) * LOG2E
    a_ptr += batch * n_a * D
    if CROSS:
        b_ptr += batch * n_b * D
    a_batch = batch * n_a
    b_batch = batch * n_b

    n_tiles = 0
    if CROSS:
        n_tiles += tl.cdiv(n_b, COLS)
    for i in tl.static_range(N_BANKS):
        n_tiles += tl.cdiv(bank_sizes[i], COLS)
    if WITHIN:
        n_tiles += tl.cdiv(n_a, COLS)
    tile_lo = split * n_tiles // n_splits
    tile_hi = (split + 1) * n_tiles // n_splits
    row_stride = tl.cast(n_batch, tl.int64) * n_a
    col_stride = tl.cast(n_batch, tl.int64) * n_b

    first = group * blocks_per_group
    last = tl.minimum(first + blocks_per_group, tl.cdiv(n_a, ROWS))
    for block in range(first, last):
        # The column slots that the block before left are read back by other threads of this program.
        tl.debug_barrier()
        row0 = block * ROWS
        rows = row0 + tl.arange(0, ROWS)
        inside = rows < n_a
        a_inv = tl.load(a_inv_ptr + a_batch + rows, mask=inside, other=1.0) if SCALE_ROWS else None
        a_sq = tl.load(a_sq_ptr + a_batch + rows, mask=inside, other=0.0) if SIMILARITY != "dot" else None
        a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
        maximum, total, weighted, plain = empty_statistics(ROWS)
        offset = 0  # of the segment's first tile among all tiles
        if CROSS:
            excluded = rows
            if target_ptr is not None:
                excluded = tl.load(target_ptr + a_batch + rows, mask=inside, other=-1).to(tl.int32)
            size = tl.cdiv(n_b, COLS)
            maximum, total, weighted, plain = _scan_segment(
                maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
                b_ptr, None if b_inv_ptr is None else b_inv_ptr + b_batch,
                None if b_sq_ptr is None else b_sq_ptr + b_batch, n_b,
                tile_lo, tl.minimum(tile_hi, size), excluded, scale2,
                col_part_ptr + group.to(tl.int64) * N_STATS * col_stride + b_batch if COLUMNS else None,
                col_stride, block == first, D, True, COLUMNS,
                SIMILARITY, SCALE_ROWS, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
            )  # fmt: skip
            offset += size
        for i in tl.static_range(N_BANKS):
            size = tl.cdiv(bank_sizes[i], COLS)
            maximum, total, weighted, plain = _scan_segment(
                maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
                banks[i], bank_invs[i], bank_sqs[i], bank_sizes[i],
                tl.maximum(tile_lo - offset, 0), tl.minimum(tile_hi - offset, size), None, scale2,
                None, col_stride, True, D, False, False,
                SIMILARITY, SCALE_ROWS, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
            )  # fmt: skip
            offset += size
        if WITHIN:
            maximum, total, weighted, plain = _scan_segment(
                maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
                a_ptr, None if a_inv_ptr is None else a_inv_ptr + a_batch,
                None if a_sq_ptr is None else a_sq_ptr + a_batch, n_a,
                tl.maximum(tile_lo - offset, 0), tile_hi - offset, rows, scale2,
                None, col_stride, True, D, True, False,
                SIMILARITY, SCALE_ROWS, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
            )  # fmt: skip
        part = row_part_ptr + split.to(tl.int64) * N_STATS * row_stride + a_batch + rows
        tl.store(part, maximum, mask=inside)
        tl.store(part + row_stride, total, mask=inside)
        tl.store(part + 2 * row_stride, weighted, mask=inside)
        if SMOOTH:
            tl.store(part + 3 * row_stride, plain, mask=inside)


class Partials(NamedTuple):
    """Partial statistics (slots, 3 or 4, B * n) of a set of rows, to be merged by ``add_partials``."""

    data: Tensor | None = None
    slots: int = 0


def scan(
    rows: Rows,
    cross: Rows | None,
    banks: Sequence[Rows],
    target: Tensor | None,
    logit_scale: Tensor,
    *,
    within: bool,
    columns: bool,
    similarity: str,
    smooth: bool,
) -> tuple[Partials, Partials]:
    """Partial softmax statistics of every row over its negatives and, with ``columns``, of every cross column.

    Args:
        rows: (B, n, D); cross: (B, m, D) whose row ``target[b, i]`` (or i) is not a negative of row i; banks: (K, D).
        target: (B, n) int64; an index out of range excludes nothing.
        logit_scale: 0-d float32, read on the device.

    One launch. Memory: 3 floats per row and split, and per column and group of row blocks (at most 128 groups).
    """
    batch, n, width = rows.data.shape
    m = cross.count if cross is not None else 0
    device = rows.data.device
    tile = choose_tile(SCAN_TILES, architecture(device), rows.data.element_size(), width)
    blocks = triton.cdiv(n, tile.rows)
    blocks_per_group = triton.cdiv(blocks, MAX_GROUPS) if columns else 1
    groups = triton.cdiv(blocks, blocks_per_group)
    sizes = [m, *(bank.count for bank in banks), n if within else 0]
    splits = column_splits(device, groups * batch, sum(triton.cdiv(size, tile.cols) for size in sizes))
    n_stats = 4 if smooth else 3
    row_part = Partials(logit_scale.new_empty(splits, n_stats, batch * n), splits)
    col_part = Partials(logit_scale.new_empty(groups, n_stats, batch * m), groups) if columns else Partials()
    scan_kernel[(groups * splits * batch,)](
        *rows,
        *(cross if cross is not None else (None, None, None)),
        tuple(bank.data for bank in banks),
        tuple(bank.count for bank in banks),
        tuple(bank.inverse_norm for bank in banks),
        tuple(bank.squared_norm for bank in banks),
        target,
        logit_scale,
        row_part.data,
        col_part.data,
        batch,
        n,
        m,
        width,
        groups,
        blocks_per_group,
        splits,
        N_BANKS=len(banks),
        CROSS=cross is not None,
        COLUMNS=columns,
        WITHIN=within,
        SIMILARITY=similarity,
        SMOOTH=smooth,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        RESIDENT=tile.depth >= width,
        PRECISION=dot_precision(rows.data),
        UPCAST=upcast(rows.data),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return row_part, col_part
