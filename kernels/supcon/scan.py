"""Softmax and positives of the rows of a similarity matrix that is never stored: SupCon's scan.

Algorithm: the online softmax of kernels/common/scan.py with labels in the tiles: Note [Labels meet the tiles]. Tile and
owner: a program owns ROWS rows and one split of the column tiles; it keeps its rows resident, (ROWS, DEPTH), where they
fit, walks the columns COLS at a time and holds (ROWS,) statistics, the sum of the positives' similarities and their
number in registers. It leaves them in the slot of its split: Note [Column splits], kernels/common/tiles.py.

Why it is right: products, sums and counts are float32 (a count is exact up to 2^24); the running
maximum is subtracted before the scale multiplies. Labels may be any int64: they are only compared. Only tiles at the
last column or on the diagonal are masked (:func:`has_masked`); of all others every element counts.
"""

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    empty_statistics,
    finite_shift,
    load_tile,
    load_vector,
    rounded_product,
)
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.scan import Partials
from cmx_fast.kernels.common.tiles import (
    SCAN_TILES,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)

# Note [Labels meet the tiles]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Positives are found by comparing the labels of every tile: by count two comparisons and three more operations per
# element, which cost less than the launches that sort labels and sum classes. And positives that went through the same
# product as the softmax cancel against it. What common/scan.py does per element for any similarity is left out here:
# distances, excluded indices, smoothing, and masks of tiles that have nothing to mask.


@triton.jit
def has_masked(row0, col0, n_c, ITSELF: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """True for a tile with elements that don't count: beyond the last column or, with ITSELF, on the diagonal."""
    masked = col0 + COLS > n_c
    if ITSELF:
        masked = masked | ((col0 < row0 + ROWS) & (row0 < col0 + COLS))
    return masked


@triton.jit
def candidate_mask(row0, col0, n_c, ITSELF: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """(ROWS, COLS) mask of the elements that count."""
    cols = col0 + tl.arange(0, COLS)
    keep = (cols < n_c)[None, :]
    if ITSELF:
        keep = keep & (cols[None, :] != (row0 + tl.arange(0, ROWS))[:, None])
    return keep


@triton.jit
def _add_tile(maximum, total, weighted, positives, u, positive, keep, a_inv, scale2):
    """The rows' statistics with those of a tile added: of all its elements, or of those in the mask ``keep``.

    Args:
        u: (ROWS, COLS) similarities, lacking the rows' inverse norms, as ``weighted`` and ``positives`` do.
        positive: (ROWS, COLS), 1 where labels are equal, else 0.
        positives: (ROWS, 2), the sum of ``u`` over the positives so far, and their number.
    """
    candidates = u
    if keep is not None:
        candidates = tl.where(keep, u, float("-inf"))
        positive = tl.where(keep, positive, 0.0)
    # One reduction of both: the number alone would have its mask made once more, in a layout of its own.
    positives += tl.sum(tl.join(positive * u, positive), 1)
    highest = tl.max(candidates, 1)
    if a_inv is not None:
        highest = rounded_product(highest, a_inv)
        candidates = rounded_product(candidates, a_inv[:, None])
    largest = tl.maximum(maximum, highest)
    shift = finite_shift(largest)
    e = tl.exp2((candidates - shift[:, None]) * scale2)
    factor = tl.exp2((maximum - shift) * scale2)
    total = total * factor + tl.sum(e, 1)
    weighted = weighted * factor + tl.sum(e * u, 1)
    return largest, total, weighted, positives


@triton.jit
def supcon_scan_kernel(
    a_ptr,  # (n_a, D)
    a_inv_ptr,  # (n_a,) inverse norms or None
    a_label_ptr,  # (n_a,) int64
    c_ptr,  # (n_c, D): the columns, with their inverse norms and labels
    c_inv_ptr,
    c_label_ptr,
    scale_ptr,
    part_ptr,  # out, (n_splits, 3, n_a)
    positive_ptr,  # out, (n_splits, n_a, 2): sum of the positives' similarities, and their number
    n_a,
    n_c,
    D,
    n_splits,
    ITSELF: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(n_a, ROWS)
    # Row blocks vary fastest: neighbouring programs read the same columns, which meet in the L2 cache.
    row0 = pid % n_blocks * ROWS
    split = pid // n_blocks
    n_tiles = tl.cdiv(n_c, COLS)
    # (ROWS,) each
    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n_a
    label = tl.load(a_label_ptr + rows, mask=inside, other=0)
    a_inv = tl.load(a_inv_ptr + rows, mask=inside, other=1.0) if a_inv_ptr is not None else None
    scale2 = base_two(tl.load(scale_ptr))
    # (ROWS, DEPTH)
    a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    maximum, total, weighted, _ = empty_statistics(ROWS)
    positives = tl.zeros((ROWS, 2), tl.float32)
    for tile in range(split * n_tiles // n_splits, (split + 1) * n_tiles // n_splits):
        col0 = tile * COLS
        if RESIDENT:
            # (COLS, DEPTH)
            c = load_tile(c_ptr, col0, n_c, 0, D, COLS, DEPTH, UPCAST)
            u = tl.dot(a, tl.trans(c), input_precision=PRECISION)
        else:
            u = chunked_products(a_ptr, row0, n_a, c_ptr, col0, n_c, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        if c_inv_ptr is not None:
            # (COLS,)
            u = rounded_product(u, load_vector(c_inv_ptr, col0, n_c, 1.0, COLS)[None, :])
        else:
            # Triton 3.6 does not compile for sm_90 a product that only the branches below use.
            u = rounded_product(u, 1.0)
        # (COLS,) labels against (ROWS,)
        same = load_vector(c_label_ptr, col0, n_c, 0, COLS)[None, :] == label[:, None]
        positive = tl.where(same, 1.0, 0.0)
        if has_masked(row0, col0, n_c, ITSELF, ROWS, COLS):
            maximum, total, weighted, positives = _add_tile(
                maximum, total, weighted, positives, u, positive,
                candidate_mask(row0, col0, n_c, ITSELF, ROWS, COLS), a_inv, scale2,
            )  # fmt: skip
        else:
            maximum, total, weighted, positives = _add_tile(
                maximum, total, weighted, positives, u, positive, None, a_inv, scale2
            )
    similarities, number = tl.split(positives)
    if a_inv_ptr is not None:
        weighted *= a_inv
        similarities *= a_inv
    # (ROWS,) each: this split's slot of these rows, which no other program writes.
    part = part_ptr + split * 3 * tl.cast(n_a, tl.int64) + rows
    tl.store(part, maximum, mask=inside)
    tl.store(part + n_a, total, mask=inside)
    tl.store(part + 2 * tl.cast(n_a, tl.int64), weighted, mask=inside)
    part = positive_ptr + 2 * (split * tl.cast(n_a, tl.int64) + rows)
    tl.store(part, similarities, mask=inside)
    tl.store(part + 1, number, mask=inside)


def scan(
    rows: Rows, columns: Rows | None, labels: Tensor, column_labels: Tensor | None, logit_scale: Tensor
) -> tuple[Partials, Tensor]:
    """Partial softmax statistics of every row over the columns, and (slots, n, 2) sums over its positives among them.

    Args:
        rows: (n, D); columns: (m, D), or None for the other rows.
        labels: (n,) int64; column_labels: (m,).
        logit_scale: 0-d float32, read on the device; results are meaningless unless it is positive.

    Cost: one launch; 5 floats per row and split.
    """
    n, width = rows.data.shape
    itself = columns is None
    columns = columns or rows
    arch = architecture(rows.data.device)
    tile = choose_tile(SCAN_TILES, arch, rows.data.dtype, width)
    resident = tile.depth >= width
    registers = None
    if arch == "sm90" and resident and rows.data.element_size() == 2:
        # Two programs on a multiprocessor: one multiplies while the other computes exponentials.
        registers = 128
    elif rows.data.element_size() == 4 and not resident:
        # Of its own choice the assembler spills a few.
        registers = 168
    programs = ceil_div(n, tile.rows)
    splits = column_splits(rows.data.device, programs, ceil_div(columns.length, tile.cols))
    part = logit_scale.new_empty(splits, 3, n)
    positives = logit_scale.new_empty(splits, n, 2)
    supcon_scan_kernel[(programs * splits,)](
        *rows[:2],
        labels,
        *columns[:2],
        labels if itself else column_labels,
        logit_scale,
        part,
        positives,
        n,
        columns.length,
        width,
        splits,
        ITSELF=itself,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        RESIDENT=resident,
        PRECISION=dot_precision(rows.data),
        UPCAST=upcast(rows.data),
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=registers,
    )
    return Partials(part, splits), positives
