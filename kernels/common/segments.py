"""Device functions that the scan and the gradient of the contrastive softmax family share, inlined into both.

The candidates of a row are column segments, one after the other: *cross* (the rows of the other tensor), any number of
*banks*, and *within* (the other rows of the same tensor). Each segment is cut into tiles of COLS columns of its own; a
program walks a range of all tiles. Scan and gradient must see the same similarities and the same candidates, to the
bit: both make them here. Each makes the product and the columns' norms itself, since a device function cannot return a
tile in one form of a kernel and nothing in another. SupCon's two kernels repeat these lines for the same reason.
"""

import triton
import triton.language as tl

from cmx_fast.kernels.common.logits import load_targets, load_vector, similarity


@triton.jit
def tile_range(
    split,
    n_splits,
    n_a,
    n_b,
    bank_sizes,
    CROSS: tl.constexpr,
    N_BANKS: tl.constexpr,
    WITHIN: tl.constexpr,
    COLS: tl.constexpr,
):
    """First tile of a split, and the one behind its last, among those of all segments."""
    n_tiles = 0
    if CROSS:
        n_tiles += tl.cdiv(n_b, COLS)
    for i in tl.static_range(N_BANKS):
        n_tiles += tl.cdiv(bank_sizes[i], COLS)
    if WITHIN:
        n_tiles += tl.cdiv(n_a, COLS)
    return split * n_tiles // n_splits, (split + 1) * n_tiles // n_splits


@triton.jit
def similarities_and_mask(
    product,
    a_inv,
    c_inv,
    a_sq,
    c_sq_ptr,
    row0,
    col0,
    cols,
    n_c,
    excluded,
    excluding_ptr,
    EXCLUDE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """(ROWS, COLS) similarities from the products of a tile with the columns ``col0...``, and the mask of candidates.

    Args:
        a_inv, a_sq: (ROWS,) inverse and squared norms of the rows; c_inv: (COLS,); c_sq_ptr: (n_c,).
        cols: (COLS,) the columns' indices, ``col0...``.
        excluded: (ROWS,) the column that is no candidate of each row; excluding_ptr: (n_c,) the row of each column.
    """
    # (COLS,)
    c_sq = load_vector(c_sq_ptr, col0, n_c, 0.0, COLS) if SIMILARITY != "dot" else None
    u = similarity(product, a_inv, c_inv, a_sq, c_sq, SIMILARITY, SCALE_ROWS, SCALE_COLS)
    keep = (cols < n_c)[None, :]
    if EXCLUDE == "column of row" or EXCLUDE == "column of row and itself":
        keep = keep & (cols[None, :] != excluded[:, None])
        if EXCLUDE == "column of row and itself":
            keep = keep & (cols[None, :] != (row0 + tl.arange(0, ROWS))[:, None])
    elif EXCLUDE == "row of column":
        rows = row0 + tl.arange(0, ROWS)
        keep = keep & (load_targets(excluding_ptr, cols, cols < n_c)[None, :] != rows[:, None])
    return u, keep
