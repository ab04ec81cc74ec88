"""Gradient of SupCon with respect to rows: FlashAttention's shape, with labels in the tiles.

Algorithm: a program recomputes its similarity tiles, turns each into the gradient G of the losses with respect to the
logits and multiplies it with the columns. With the incoming gradients w, the largest similarities t, the sums S of the
exponentials above them and s_i = 1 / |P(i)|

    G_ij = w_i (exp(scale (u_ij - t_i)) / S_i - [j in P(i)] s_i)
         + w_j (exp(scale (u_ij - t_j)) / S_j - [i in P(j)] s_j)

of which a square problem has both halves, since its similarity is symmetric; of one with references the rows have the
first and the references the second.

Tile and owner: a program owns ROWS rows, OUT features of their gradient and one split of the column tiles, as in
kernels/common/gradient_kernel.py. Why it is right: positives leave the softmax in float32, before G is rounded to the
inputs' precision, so only what is left of their cancellation is rounded. The diagonal and columns beyond the last are
set to 0 in the tiles that have them.
"""

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.gradient import gradient_precision
from cmx_fast.kernels.common.gradient_kernel import accumulate_product
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    exponential_below,
    load_tile,
    load_vector,
    rounded_product,
)
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)
from cmx_fast.kernels.supcon.scan import candidate_mask, has_masked


@triton.jit
def supcon_gradient_kernel(
    a_ptr,  # (n_a, D): the rows whose gradient this is
    a_inv_ptr,  # (n_a,) inverse norms or None
    a_label_ptr,  # (n_a,) int64
    c_ptr,  # (n_c, D): the columns, with their inverse norms and labels
    c_inv_ptr,
    c_label_ptr,
    stats_ptr,  # (4, M): t, unused, s, 1 / S; of rows if ROW, of columns if COL
    grad_ptr,  # (M,): w of the same
    scale_ptr,
    out_ptr,  # out, (n_splits, n_a, D)
    n_a,
    n_c,
    D,
    n_splits,
    n_chunks,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    ITSELF: tl.constexpr,
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
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    out0 = pid % n_chunks * OUT
    split = pid // n_chunks
    n_tiles = tl.cdiv(n_c, COLS)
    # (ROWS,) each
    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n_a
    label = tl.load(a_label_ptr + rows, mask=inside, other=0)
    scale = tl.load(scale_ptr)
    scale2 = base_two(scale)
    a_inv = tl.load(a_inv_ptr + rows, mask=inside, other=1.0) if a_inv_ptr is not None else None
    if ROW:
        row_top = tl.load(stats_ptr + rows, mask=inside, other=float("inf"))
        row_weight = tl.load(grad_ptr + rows, mask=inside, other=0.0)
        row_stats = stats_ptr + 2 * tl.cast(n_a, tl.int64) + rows
        row_pull = -row_weight * tl.load(row_stats, mask=inside, other=0.0)
        row_weight *= tl.load(row_stats + n_a, mask=inside, other=0.0)
    # (ROWS, DEPTH)
    a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    acc = tl.zeros((ROWS, OUT), tl.float32)
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
            c_inv = load_vector(c_inv_ptr, col0, n_c, 1.0, COLS)
            u = rounded_product(u, c_inv[None, :])
        if a_inv_ptr is not None:
            u = rounded_product(u, a_inv[:, None])
        # The positives' shares first: the exponentials' products are then added to them by a fused multiply-add.
        h = tl.zeros((ROWS, COLS), tl.float32)
        if ROW:
            h += row_pull[:, None]
        if COL:
            # (COLS,) each
            c_weight = load_vector(grad_ptr, col0, n_c, 0.0, COLS)
            c_stats = stats_ptr + 2 * tl.cast(n_c, tl.int64)
            h -= (c_weight * load_vector(c_stats, col0, n_c, 0.0, COLS))[None, :]
        # (COLS,) labels against (ROWS,)
        same = load_vector(c_label_ptr, col0, n_c, 0, COLS)[None, :] == label[:, None]
        h = tl.where(same, h, 0.0)
        if ROW:
            h += row_weight[:, None] * exponential_below(u, row_top[:, None], scale2)
        if COL:
            # (COLS,) each
            c_top = load_vector(stats_ptr, col0, n_c, float("inf"), COLS)
            c_weight *= load_vector(c_stats + n_c, col0, n_c, 0.0, COLS)
            h += c_weight[None, :] * exponential_below(u, c_top[None, :], scale2)
        if has_masked(row0, col0, n_c, ITSELF, ROWS, COLS):
            h = tl.where(candidate_mask(row0, col0, n_c, ITSELF, ROWS, COLS), h, 0.0)
        if c_inv_ptr is not None:
            h *= c_inv[None, :]
        if not RESIDENT:
            # (COLS, OUT): the same columns, at the features of the gradient that this program owns.
            c = load_tile(c_ptr, col0, n_c, out0, D, COLS, OUT, UPCAST)
        acc, _ = accumulate_product(acc, h, c, PRODUCT)
    d = out0 + tl.arange(0, OUT)
    slot = split * tl.cast(n_a, tl.int64) + rows
    # (ROWS, OUT)
    tl.store(out_ptr + slot[:, None] * D + d[None, :], acc * scale, mask=inside[:, None] & (d < D)[None, :])


def row_gradient(
    rows: Rows,
    labels: Tensor,
    columns: Rows | None,
    column_labels: Tensor | None,
    stats: Tensor,
    grad_loss: Tensor,
    logit_scale: Tensor,
    *,
    of_rows: bool,
) -> Tensor:
    """(splits, n, D) float32 parts of the gradient of ``rows``, before their normalisation.

    Args:
        rows: (n, D), labels: (n,) int64; columns: (m, D), column_labels: (m,), or None for the other rows.
        stats: (4, k) as the forward pass leaves them; grad_loss: (k,). k losses, of rows or columns.
        of_rows: the losses are the rows'; else, with ``columns``, the columns'.

    Cost: one launch; two n x m x D products, more for features wider than a program's output.
    """
    n, width = rows.data.shape
    itself = columns is None
    columns = columns or rows
    tile = choose_tile(GRADIENT_TILES, architecture(rows.data.device), rows.data.dtype, width)
    resident = tile.depth >= width
    chunks = 1 if resident else ceil_div(width, tile.out)
    programs = ceil_div(n, tile.rows) * chunks
    splits = column_splits(rows.data.device, programs, ceil_div(columns.length, tile.cols))
    part = logit_scale.new_empty(splits, n, width)
    supcon_gradient_kernel[(programs * splits,)](
        *rows[:2],
        labels,
        *columns[:2],
        labels if itself else column_labels,
        stats,
        grad_loss,
        logit_scale,
        part,
        n,
        columns.length,
        width,
        splits,
        chunks,
        ROW=of_rows,
        COL=itself or not of_rows,
        ITSELF=itself,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        OUT=tile.out,
        RESIDENT=resident,
        PRECISION=dot_precision(rows.data),
        PRODUCT=gradient_precision(rows.data),
        UPCAST=upcast(rows.data),
        num_warps=tile.warps,
        num_stages=tile.stages,
        # Of its own choice the assembler spills a few in float32.
        maxnreg=168 if rows.data.element_size() == 4 else None,
    )
    return part
