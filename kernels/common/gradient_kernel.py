"""Gradient of row-wise and column-wise softmax cross-entropies with respect to the rows: FlashAttention's shape.

Algorithm: a program recomputes its similarity tiles, turns each into the gradient ``G`` of the loss with respect to the
logits and multiplies it with the columns. For a logit that takes part in the softmax of its row and in that of its
column

    G_ij = w_i exp(s (u_ij - t_i)) - e_i  +  v_j exp(s (u_ij - r_j)) - f_j

with the scale s, the largest similarities t, r of either softmax, weights w, v, each divided by the softmax's sum of
exponentials, and label-smoothing shares e, f. InfoNCE's two directions, its banks and its within-modality negatives are
this formula with one or both halves. In the code ``h`` is G, for "l2" divided by the distance; the constants s and, for
"sql2", 2 multiply the finished sums.

Tile and owner: a program owns ROWS rows of one sample, OUT features of their gradient and one split of the column
tiles. It accumulates (ROWS, OUT) in float32 registers and stores them in the slot of its split: no atomics, see
Note [Column splits], kernels/common/tiles.py. Rows that fit a tile (RESIDENT) have all their features in one program;
wider ones are cut into n_chunks = ceil(D / OUT) programs, each of which makes the similarities anew.

Why it is right: positives never enter. Their gradient is added in float32 afterwards (info_nce/finish.py), so rounding
G to the inputs' precision costs every term a relative error only. The second half of a distance's gradient follows
Note [Rounded h].
"""

import triton
import triton.language as tl

from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    exchanged,
    load_targets,
    load_tile,
    load_vector,
    rounded_product,
)
from cmx_fast.kernels.common.norms import inverse_norms_at
from cmx_fast.kernels.common.segments import similarities_and_mask, tile_range

# Note [Rounded h]
# ~~~~~~~~~~~~~~~~
# A distance's gradient is sum_j h_ij (c_j - a_i), made as sum_j h_ij c_j less a_i sum_j h_ij. The product takes h
# rounded to the inputs' precision; the plain sum must take the same rounded h, or near neighbours, whose c_j - a_i is
# small beside c_j, would be left with the rounding of h times c_j. accumulate_product returns h as it was multiplied.


@triton.jit
def accumulate_product(acc, h, c, PRODUCT: tl.constexpr):
    """``acc + h @ c`` for a float32 (ROWS, COLS) h, and h as it was rounded."""
    if PRODUCT == "bf16":
        rounded = h.to(tl.bfloat16)
        acc = tl.dot(rounded, c, acc)
        h_rounded = rounded.to(tl.float32)
    else:
        # float16 features: exact in TF32, which also has the range that h needs (1e-12 for a large batch).
        acc = tl.dot(h, c.to(tl.float32), acc, input_precision=PRODUCT)
        h_rounded = h
    return acc, h_rounded


@triton.jit
def _gradient_segment(
    acc,
    h_sum,
    a,
    a_ptr,
    a_inv,
    a_sq,
    row0,
    n_a,
    row_top,
    row_weight,
    row_share,
    c_ptr,
    c_inv_ptr,
    c_sq_ptr,
    c_top_ptr,
    c_weight_ptr,
    c_share_ptr,
    c_grad_ptr,
    n_c,
    tile_lo,
    tile_hi,
    excluded,
    excluding_ptr,
    scale2,
    out0,
    D,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MEASURE: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The accumulators of a block's rows with column tiles tile_lo to tile_hi of one segment added to them."""
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

        # Two logits rounded alike. The difference first would keep more digits, and spill on sm_100; the largest's
        # is 0 either way. A product summed in another order may lie above it.
        z2 = rounded_product(u, scale2)
        h = tl.zeros((ROWS, COLS), tl.float32)
        if ROW:
            h += row_weight[:, None] * tl.exp2(tl.minimum(z2 - row_top[:, None], 0.0))
            if SMOOTH:
                h -= row_share[:, None]
        if COL:
            c_top = rounded_product(load_vector(c_top_ptr, col0, n_c, float("inf"), COLS), scale2)
            c_weight = load_vector(c_weight_ptr, col0, n_c, 0.0, COLS)
            if c_grad_ptr is not None:
                c_weight *= load_vector(c_grad_ptr, col0, n_c, 0.0, COLS)
            h += c_weight[None, :] * tl.exp2(tl.minimum(z2 - c_top[None, :], 0.0))
            if SMOOTH:
                h -= load_vector(c_share_ptr, col0, n_c, 0.0, COLS)[None, :]
        if SIMILARITY == "l2":
            # d(-distance) = -(a - c) / distance; the subgradient at distance 0 is 0.
            keep = keep & (u != 0)
            h = tl.where(keep, h / -u, 0.0)
        else:
            h = tl.where(keep, h, 0.0)
        if SCALE_COLS:
            h *= c_inv[None, :]
        if not RESIDENT:
            # (COLS, OUT): the same columns, at the features of the gradient that this program owns.
            c = load_tile(c_ptr, col0, n_c, out0, D, COLS, OUT, UPCAST)
        acc, h = accumulate_product(acc, h, c, PRODUCT)
        if SIMILARITY != "dot":
            # See Note [Rounded h].
            if SCALE_COLS:
                h /= c_inv[None, :]
            h_sum += tl.sum(h, 1)
    return acc, h_sum


@triton.jit
def contrastive_gradient_kernel(
    a_ptr,  # (B, n_a, D): the rows whose gradient this is
    a_inv_ptr,  # (B, n_a) inverse norms or None
    a_sq_ptr,  # (B, n_a) squared norms or None
    a_top_ptr,  # (B, n_a) largest similarity of the rows' own softmax
    a_weight_ptr,
    a_share_ptr,
    b_ptr,  # (B, n_b, D): the cross columns, with the same five vectors, (B, n_b) each
    b_inv_ptr,
    b_sq_ptr,
    b_top_ptr,
    b_weight_ptr,
    b_share_ptr,
    banks,  # tuple of (K, D), shared by the batch
    bank_sizes,
    bank_invs,
    bank_sqs,
    target_ptr,  # (B, n_a) or, for EXCLUDE "row of column", (B, n_b); None: equal indices
    scale_ptr,
    grad_ptr,  # (B, n): factors that the weights of rows and of columns still lack; or None
    out_ptr,  # (n_splits, B, n_a, D)
    sum_ptr,  # (n_splits, B, n_a) or None
    back_out_ptr,  # the cross rows' own gradient, of which there are n_a, too; None: not wanted
    back_sum_ptr,
    stats_stride,  # between samples, of the (B, n_a) and (B, n_b) parts of a softmax
    n_batch,
    n_a,
    n_b,
    D,
    n_splits,
    n_chunks,
    N_BANKS: tl.constexpr,
    CROSS_ROW: tl.constexpr,
    CROSS_COL: tl.constexpr,
    WITHIN: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    MEASURE: tl.constexpr,  # rows and cross rows are to be normalised, and their norms not known
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    OUT: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(n_a, ROWS)
    if back_out_ptr is not None:
        programs = n_blocks * n_chunks * n_splits * n_batch
        back = pid >= programs
        pid = pid % programs
        a_ptr, b_ptr = exchanged(back, a_ptr, b_ptr)
        if a_inv_ptr is not None:
            a_inv_ptr, b_inv_ptr = exchanged(back, a_inv_ptr, b_inv_ptr)
        if a_sq_ptr is not None:
            a_sq_ptr, b_sq_ptr = exchanged(back, a_sq_ptr, b_sq_ptr)
        if a_top_ptr is not None:
            a_top_ptr, b_top_ptr = exchanged(back, a_top_ptr, b_top_ptr)
        if a_weight_ptr is not None:
            a_weight_ptr, b_weight_ptr = exchanged(back, a_weight_ptr, b_weight_ptr)
        if a_share_ptr is not None:
            a_share_ptr, b_share_ptr = exchanged(back, a_share_ptr, b_share_ptr)
        out_ptr = tl.where(back, back_out_ptr, out_ptr)
        if sum_ptr is not None:
            sum_ptr = tl.where(back, back_sum_ptr, sum_ptr)
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    out0 = pid % n_chunks * OUT
    pid = pid // n_chunks
    split = pid % n_splits
    batch = (pid // n_splits).to(tl.int64)
    SCALE_ROWS: tl.constexpr = MEASURE or a_inv_ptr is not None
    CROSS: tl.constexpr = CROSS_ROW or CROSS_COL
    scale = tl.load(scale_ptr)
    scale2 = base_two(scale)
    a_ptr += batch * n_a * D
    a_batch = batch * n_a
    b_batch = batch * n_b
    statistics = batch * stats_stride

    tile_lo, tile_hi = tile_range(split, n_splits, n_a, n_b, bank_sizes, CROSS, N_BANKS, WITHIN, COLS)

    # (ROWS,) each, of this block's rows.
    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n_a
    a_inv = None
    if MEASURE:
        a_inv = inverse_norms_at(a_ptr, row0, n_a, D, ROWS, UPCAST)
    elif SCALE_ROWS:
        a_inv = tl.load(a_inv_ptr + a_batch + rows, mask=inside, other=1.0)
    a_sq = tl.load(a_sq_ptr + a_batch + rows, mask=inside, other=0.0) if SIMILARITY != "dot" else None
    row_top = None
    row_weight = None
    row_share = None
    if a_top_ptr is not None:
        row_top = tl.load(a_top_ptr + statistics + rows, mask=inside, other=float("inf"))
        row_top = rounded_product(row_top, scale2)
        row_weight = tl.load(a_weight_ptr + statistics + rows, mask=inside, other=0.0)
        if grad_ptr is not None:
            row_weight *= tl.load(grad_ptr + a_batch + rows, mask=inside, other=0.0)
        if SMOOTH:
            row_share = tl.load(a_share_ptr + statistics + rows, mask=inside, other=0.0)
    # (ROWS, DEPTH)
    a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    acc = tl.zeros((ROWS, OUT), tl.float32)
    h_sum = tl.zeros((ROWS,), tl.float32)
    offset = 0
    if CROSS:
        excluded = rows
        excluding_ptr = None
        if target_ptr is not None:
            if EXCLUDE != "row of column":
                excluded = load_targets(target_ptr + a_batch, rows, inside)
            else:
                excluding_ptr = target_ptr + b_batch
        size = tl.cdiv(n_b, COLS)
        acc, h_sum = _gradient_segment(
            acc, h_sum, a, a_ptr, a_inv, a_sq, row0, n_a, row_top, row_weight, row_share,
            b_ptr + b_batch * D, None if b_inv_ptr is None else b_inv_ptr + b_batch,
            None if b_sq_ptr is None else b_sq_ptr + b_batch,
            None if b_top_ptr is None else b_top_ptr + statistics,
            None if b_weight_ptr is None else b_weight_ptr + statistics,
            None if b_share_ptr is None else b_share_ptr + statistics,
            None if grad_ptr is None else grad_ptr + b_batch, n_b,
            tile_lo, tl.minimum(tile_hi, size), excluded, excluding_ptr, scale2, out0, D, CROSS_ROW, CROSS_COL, EXCLUDE,
            SIMILARITY, SCALE_ROWS, MEASURE, SMOOTH, ROWS, COLS, DEPTH, OUT, RESIDENT, PRECISION, PRODUCT, UPCAST,
        )  # fmt: skip
        offset += size
    for i in tl.static_range(N_BANKS):
        size = tl.cdiv(bank_sizes[i], COLS)
        acc, h_sum = _gradient_segment(
            acc, h_sum, a, a_ptr, a_inv, a_sq, row0, n_a, row_top, row_weight, row_share,
            banks[i], bank_invs[i], bank_sqs[i], None, None, None, None, bank_sizes[i],
            tl.maximum(tile_lo - offset, 0), tl.minimum(tile_hi - offset, size), None, None, scale2, out0, D,
            True, False, "nothing", SIMILARITY, SCALE_ROWS, False, SMOOTH, ROWS, COLS, DEPTH, OUT, RESIDENT, PRECISION,
            PRODUCT, UPCAST,
        )  # fmt: skip
        offset += size
    if WITHIN:
        acc, h_sum = _gradient_segment(
            acc, h_sum, a, a_ptr, a_inv, a_sq, row0, n_a, row_top, row_weight, row_share,
            a_ptr, None if a_inv_ptr is None else a_inv_ptr + a_batch,
            None if a_sq_ptr is None else a_sq_ptr + a_batch, a_top_ptr + statistics, a_weight_ptr + statistics,
            None if a_share_ptr is None else a_share_ptr + statistics,
            None if grad_ptr is None else grad_ptr + a_batch, n_a,
            tl.maximum(tile_lo - offset, 0), tile_hi - offset, rows, None, scale2, out0, D, True, True,
            "column of row", SIMILARITY, SCALE_ROWS, MEASURE, SMOOTH, ROWS, COLS, DEPTH, OUT, RESIDENT, PRECISION,
            PRODUCT, UPCAST,
        )  # fmt: skip

    factor = 2 * scale if SIMILARITY == "sql2" else scale
    d = out0 + tl.arange(0, OUT)
    slot = (split * tl.cast(n_batch, tl.int64) + batch) * n_a + rows
    # (ROWS, OUT)
    tl.store(out_ptr + slot[:, None] * D + d[None, :], acc * factor, mask=inside[:, None] & (d < D)[None, :])
    if SIMILARITY != "dot":  # noqa: SIM102 - the first condition is one of compilation
        if out0 == 0:
            # (ROWS,): the same in every chunk of features; the first one stores it.
            tl.store(sum_ptr + slot, h_sum * factor, mask=inside)
