"""Softmax statistics of the rows of a similarity matrix that is never stored, for InfoNCE and softmax blocks.

Algorithm: the online softmax of FlashAttention without values. The candidates of a row are up to three kinds of column
segments: *cross* (the rows of the other tensor), any number of *banks*, and *within* (the other rows of the same
tensor), concatenated into one sequence of column tiles.

Tile and owner: a program owns ROWS rows of one sample and one split of the column tiles. It keeps its rows resident,
(ROWS, DEPTH) with DEPTH >= D, or reads both operands DEPTH features at a time; it walks its columns COLS at a time and
holds (ROWS,) statistics of kernels/common/logits.py in registers. What it leaves is its rows' partial statistics in the
slot of its split: see Note [Column splits], kernels/common/tiles.py.

Why it is right: products accumulate in float32, the running maximum is subtracted before the scale multiplies, and
everything that is no candidate (a positive, the row itself, a column beyond the last) enters as -inf, which no sum
sees. Memory is 3 or 4 floats per row and split whatever the number of columns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    empty_statistics,
    exchanged,
    finite_shift,
    load_targets,
    load_tile,
    load_vector,
)
from cmx_fast.kernels.common.norms import Rows, inverse_norms_at
from cmx_fast.kernels.common.segments import similarities_and_mask, tile_range
from cmx_fast.kernels.common.tiles import (
    SCAN_TILES,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)

# Note [Two scans, not column sums]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# The keys' direction of a symmetric loss is a second scan with the roles exchanged (in the same launch, where positives
# have equal indices), not column sums of the first one's tiles. Those would save a product, but column maxima and sums
# run across lanes and warps: by count some 1,100 warp shuffles per 128 x 64 tile against 256 cycles for its product at
# D = 128, and as compiled 255 registers per thread with spills on sm_100, where the scan of rows takes half as many.


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
    excluding_ptr,
    scale2,
    D,
    EXCLUDE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MEASURE: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The statistics of a block's rows with column tiles tile_lo to tile_hi of one segment added to them."""
    SCALE_COLS: tl.constexpr = MEASURE or c_inv_ptr is not None
    for tile in range(tile_lo, tile_hi):
        col0 = tile * COLS
        cols = col0 + tl.arange(0, COLS)
        if RESIDENT:
            # (COLS, DEPTH)
            c = load_tile(c_ptr, col0, n_c, 0, D, COLS, DEPTH, UPCAST)
            product = tl.dot(a, tl.trans(c), input_precision=PRECISION)
        else:
            product = chunked_products(
                a_ptr, row0, n_a, c_ptr, col0, n_c, D, ROWS, COLS, DEPTH, PRECISION, UPCAST
            )
        # (COLS,)
        c_inv = None
        if MEASURE:
            c_inv = inverse_norms_at(c_ptr, col0, n_c, D, COLS, UPCAST)
        elif SCALE_COLS:
            c_inv = load_vector(c_inv_ptr, col0, n_c, 1.0, COLS)
        # (ROWS, COLS) each
        u, keep = similarities_and_mask(
            product, a_inv, c_inv, a_sq, c_sq_ptr, row0, col0, cols, n_c, excluded, excluding_ptr,
            EXCLUDE, SIMILARITY, SCALE_ROWS, SCALE_COLS, ROWS, COLS,
        )  # fmt: skip
        candidates = tl.where(keep, u, float("-inf"))

        largest = tl.maximum(maximum, tl.max(candidates, 1))
        shift = finite_shift(largest)
        e = tl.exp2((candidates - shift[:, None]) * scale2)
        factor = tl.exp2((maximum - shift) * scale2)
        total = total * factor + tl.sum(e, 1)
        weighted = weighted * factor + tl.sum(e * u, 1)
        maximum = largest
        if SMOOTH:
            plain += tl.sum(tl.where(keep, u, 0.0), 1)
    return maximum, total, weighted, plain


@triton.jit
def contrastive_scan_kernel(
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
    target_ptr,  # (B, n_a) or, for EXCLUDE "row of column", (B, n_b) int64; None: equal indices
    scale_ptr,
    part_ptr,  # (n_splits, 3 or 4, B * n_a)
    back_part_ptr,  # the cross rows' own statistics, of which there are n_a, too; None: not wanted
    n_batch,
    n_a,
    n_b,
    D,
    n_splits,
    N_BANKS: tl.constexpr,
    CROSS: tl.constexpr,
    WITHIN: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    MEASURE: tl.constexpr,  # rows and cross rows are to be normalised, and their norms not known
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(n_a, ROWS)
    if back_part_ptr is not None:
        programs = n_blocks * n_splits * n_batch
        back = pid >= programs
        pid = pid % programs
        a_ptr, b_ptr = exchanged(back, a_ptr, b_ptr)
        if a_inv_ptr is not None:
            a_inv_ptr, b_inv_ptr = exchanged(back, a_inv_ptr, b_inv_ptr)
        if a_sq_ptr is not None:
            a_sq_ptr, b_sq_ptr = exchanged(back, a_sq_ptr, b_sq_ptr)
        part_ptr = tl.where(back, back_part_ptr, part_ptr)
    # Row blocks vary fastest: neighbouring programs read the same columns, which meet in the L2 cache.
    row0 = pid % n_blocks * ROWS
    split = pid // n_blocks % n_splits
    batch = (pid // n_blocks // n_splits).to(tl.int64)
    N_STATS: tl.constexpr = 4 if SMOOTH else 3
    SCALE_ROWS: tl.constexpr = MEASURE or a_inv_ptr is not None
    scale2 = base_two(tl.load(scale_ptr))
    a_ptr += batch * n_a * D
    a_batch = batch * n_a
    b_batch = batch * n_b

    tile_lo, tile_hi = tile_range(split, n_splits, n_a, n_b, bank_sizes, CROSS, N_BANKS, WITHIN, COLS)

    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n_a
    a_inv = None
    if MEASURE:
        a_inv = inverse_norms_at(a_ptr, row0, n_a, D, ROWS, UPCAST)
    elif SCALE_ROWS:
        a_inv = tl.load(a_inv_ptr + a_batch + rows, mask=inside, other=1.0)
    # (ROWS,), then (ROWS, DEPTH)
    a_sq = tl.load(a_sq_ptr + a_batch + rows, mask=inside, other=0.0) if SIMILARITY != "dot" else None
    a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    maximum, total, weighted, plain = empty_statistics(ROWS)
    offset = 0  # of the segment's first tile among all tiles
    if CROSS:
        excluded = rows
        excluding_ptr = None
        if target_ptr is not None:
            if EXCLUDE != "row of column":
                excluded = load_targets(target_ptr + a_batch, rows, inside)
            else:
                excluding_ptr = target_ptr + b_batch
        size = tl.cdiv(n_b, COLS)
        maximum, total, weighted, plain = _scan_segment(
            maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
            b_ptr + b_batch * D, None if b_inv_ptr is None else b_inv_ptr + b_batch,
            None if b_sq_ptr is None else b_sq_ptr + b_batch, n_b,
            tile_lo, tl.minimum(tile_hi, size), excluded, excluding_ptr, scale2, D, EXCLUDE,
            SIMILARITY, SCALE_ROWS, MEASURE, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
        )  # fmt: skip
        offset += size
    for i in tl.static_range(N_BANKS):
        size = tl.cdiv(bank_sizes[i], COLS)
        maximum, total, weighted, plain = _scan_segment(
            maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
            banks[i], bank_invs[i], bank_sqs[i], bank_sizes[i],
            tl.maximum(tile_lo - offset, 0), tl.minimum(tile_hi - offset, size), None, None, scale2, D, "nothing",
            SIMILARITY, SCALE_ROWS, False, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
        )  # fmt: skip
        offset += size
    if WITHIN:
        maximum, total, weighted, plain = _scan_segment(
            maximum, total, weighted, plain, a, a_ptr, a_inv, a_sq, row0, n_a,
            a_ptr, None if a_inv_ptr is None else a_inv_ptr + a_batch,
            None if a_sq_ptr is None else a_sq_ptr + a_batch, n_a,
            tl.maximum(tile_lo - offset, 0), tile_hi - offset, rows, None, scale2, D, "column of row",
            SIMILARITY, SCALE_ROWS, MEASURE, SMOOTH, ROWS, COLS, DEPTH, RESIDENT, PRECISION, UPCAST,
        )  # fmt: skip
    # (ROWS,) each: this split's slot of these rows, which no other program writes.
    stride = tl.cast(n_batch, tl.int64) * n_a
    part = part_ptr + split * N_STATS * stride + a_batch + rows
    tl.store(part, maximum, mask=inside)
    tl.store(part + stride, total, mask=inside)
    tl.store(part + 2 * stride, weighted, mask=inside)
    if SMOOTH:
        tl.store(part + 3 * stride, plain, mask=inside)


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
    exclude: str,
    within: bool,
    similarity: str,
    smooth: bool,
    measure: bool = False,
    back: Rows | None = None,
) -> tuple[Partials, Partials]:
    """Partial softmax statistics of every row over its negatives, and of every row of ``back`` over its own.

    Args:
        rows: (B, n, D); cross: (B, m, D) or None; banks: (K, D) each.
        target, exclude: which cross logits are positives: "column of row" (target is (B, n) int64), "row of column"
            (target is (B, m)), each the equal index for target None, "column of row and itself" (the equal index
            besides), or "nothing". An index that is no column's excludes nothing.
        logit_scale: 0-d float32, read on the device.
        measure: divide rows and cross rows by their norms, which every program finds for itself: Note [Norms in place],
            kernels/common/norms.py.
        back: (B, n, D), the other direction's rows, scanned in the same launch; only for target None. Their candidates
            are ``rows`` where ``cross`` is given (``cross`` must then be ``back``), the banks, and with ``within`` each
            other. None: one direction, and an empty second result.

    Cost: one launch; 3 floats per row and split, 4 with ``smooth``.
    """
    batch, n, width = rows.data.shape
    m = cross.length if cross is not None else 0
    device = rows.data.device
    tile = choose_tile(SCAN_TILES, architecture(device), rows.data.dtype, width)
    sizes = [m, *(bank.length for bank in banks), n if within else 0]
    programs = ceil_div(n, tile.rows) * batch
    sides = 1 if back is None else 2
    splits = column_splits(device, sides * programs, sum(ceil_div(size, tile.cols) for size in sizes))
    parts = [logit_scale.new_empty(splits, 4 if smooth else 3, batch * n) for _ in range(sides)]
    if target is None and exclude == "row of column":
        exclude = "column of row"
    contrastive_scan_kernel[(sides * programs * splits,)](
        *rows,
        *(back or cross or (None, None, None)),
        tuple(bank.data for bank in banks),
        tuple(bank.length for bank in banks),
        tuple(bank.inverse_norm for bank in banks),
        tuple(bank.squared_norm for bank in banks),
        target,
        logit_scale,
        parts[0],
        None if back is None else parts[1],
        batch,
        n,
        m,
        width,
        splits,
        N_BANKS=len(banks),
        CROSS=cross is not None,
        WITHIN=within,
        EXCLUDE=exclude,
        SIMILARITY=similarity,
        MEASURE=measure,
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
    return Partials(parts[0], splits), Partials() if back is None else Partials(parts[1], splits)
