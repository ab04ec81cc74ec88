"""Losses of all pairs of rows and columns, and the rows' gradient through them, without the pairs in memory.

Algorithm: a program makes its similarity tiles, and of each pair its loss and the loss's derivative by the logit. A
pair needs nothing of other pairs, so one visit of a tile is enough for both: the forward pass adds up each row's
losses, derivatives, and derivatives times similarities (the parts of the gradients by bias and scale), and multiplies
the derivatives with the columns, which is the rows' gradient. The columns' gradient is this kernel with the roles
exchanged and a weight for every column, in the backward pass, when the weights are known.

Tile and owner: a program owns ROWS rows of one sample, OUT features of their gradient and one split of the column
tiles. It keeps three (ROWS,) sums and a (ROWS, OUT) accumulator in float32 registers and stores them in the slots of
its split: no atomics, see Note [Column splits], kernels/common/tiles.py. Rows that fit a tile (RESIDENT) have all their
features in one program; wider ones are cut into n_chunks = ceil(D / OUT) programs, each of which makes the similarities
anew, and the first of which stores the sums.

Why it is right: losses and derivatives come from e^-|t| with the logit t of a negative, or minus that of a positive, so
nothing overflows and the smaller one of sigmoid and 1 - sigmoid keeps its digits. Columns beyond the last have zero
features, so they add nothing to a gradient; the sums leave them out.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.gradient import gradient_precision
from cmx_fast.kernels.common.gradient_kernel import accumulate_product
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import LOG2E, chunked_products, load_tile, load_vector, softplus_beside
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    MAX_WIDTH,
    SCAN_TILES,
    Tile,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)

#: Where sums and gradient come from one visit: on sm_90 they do not fit the gradient's tiles together.
BOTH_TILES = GRADIENT_TILES | {
    ("sm90", torch.bfloat16): [
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 32, 128, 128, 8, 3)),
        (256, Tile(64, 32, 256, 256, 8, 2)),
        (MAX_WIDTH, Tile(128, 32, 64, 128, 8, 3)),
    ],
}


@triton.jit
def sigmoid_contrastive_pairs_kernel(
    a_ptr,  # (B, n_a, D): the rows
    a_inv_ptr,  # (B, n_a) inverse norms or None
    a_id_ptr,  # (B, n_a) int64; None: the pairs of equal indices are positives
    c_ptr,  # (B, n_c, D): the columns, with the same two vectors
    c_inv_ptr,
    c_id_ptr,
    c_weight_ptr,  # (B, n_c) factors of the columns' pairs in the gradient, or None
    scale_ptr,
    bias_ptr,
    sum_ptr,  # out, (n_splits, 3, B, n_a): of losses, of derivatives times similarities, of derivatives
    out_ptr,  # out, (n_splits, B, n_a, D)
    n_batch,
    n_a,
    n_c,
    D,
    n_splits,
    n_chunks,
    SUMS: tl.constexpr,
    GRADIENT: tl.constexpr,
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
    pid = pid // n_chunks
    split = pid % n_splits
    batch = (pid // n_splits).to(tl.int64)
    a_ptr += batch * n_a * D
    c_ptr += batch * n_c * D
    a_batch = batch * n_a
    c_batch = batch * n_c
    n_tiles = tl.cdiv(n_c, COLS)
    # (ROWS,) each
    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n_a
    a_id = rows
    if a_id_ptr is not None:
        a_id = tl.load(a_id_ptr + a_batch + rows, mask=inside, other=0)
    a_inv = tl.load(a_inv_ptr + a_batch + rows, mask=inside, other=1.0) if a_inv_ptr is not None else None
    scale = tl.load(scale_ptr)
    bias = tl.load(bias_ptr)
    # (ROWS, DEPTH)
    a = load_tile(a_ptr, row0, n_a, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    loss = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    slope = tl.zeros((ROWS,), tl.float32)
    if GRADIENT:
        acc = tl.zeros((ROWS, OUT), tl.float32)
    for tile in range(split * n_tiles // n_splits, (split + 1) * n_tiles // n_splits):
        col0 = tile * COLS
        cols = col0 + tl.arange(0, COLS)
        if RESIDENT:
            # (COLS, DEPTH)
            c = load_tile(c_ptr, col0, n_c, 0, D, COLS, DEPTH, UPCAST)
            u = tl.dot(a, tl.trans(c), input_precision=PRECISION)
        else:
            u = chunked_products(a_ptr, row0, n_a, c_ptr, col0, n_c, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
        # (COLS,) each
        if c_inv_ptr is not None:
            c_inv = load_vector(c_inv_ptr + c_batch, col0, n_c, 1.0, COLS)
            u *= c_inv[None, :]
        if a_inv_ptr is not None:
            u *= a_inv[:, None]
        c_id = cols
        if c_id_ptr is not None:
            c_id = load_vector(c_id_ptr + c_batch, col0, n_c, 0, COLS)
        positive = c_id[None, :] == a_id[:, None]
        # (ROWS, COLS) each
        z = u * scale + bias
        t = tl.where(positive, -z, z)
        e = tl.exp2(-tl.abs(t) * LOG2E)
        share = 1 / (1 + e)
        # 0 times an infinity is NaN: it stays visible where the exponential swallowed it.
        h = tl.where(t > 0, share, e * share) + 0 * u
        h = tl.where(positive, -h, h)
        if SUMS:
            keep = (cols < n_c)[None, :]
            counted = tl.where(keep, h, 0.0)
            loss += tl.sum(tl.where(keep, softplus_beside(t, e), 0.0), 1)
            weighted += tl.sum(counted * u, 1)
            slope += tl.sum(counted, 1)
        if GRADIENT:
            if c_weight_ptr is not None:
                h *= load_vector(c_weight_ptr + c_batch, col0, n_c, 0.0, COLS)[None, :]
            if c_inv_ptr is not None:
                # The columns of the product are those that came in, not the normalised ones.
                h *= c_inv[None, :]
            if not RESIDENT:
                # (COLS, OUT): the same columns, at the features of the gradient that this program owns.
                c = load_tile(c_ptr, col0, n_c, out0, D, COLS, OUT, UPCAST)
            acc, _ = accumulate_product(acc, h, c, PRODUCT)
    slot_rows = tl.cast(n_batch, tl.int64) * n_a
    if SUMS:  # noqa: SIM102 - the first condition is one of compilation
        if out0 == 0:
            # (ROWS,) each: this split's slot of these rows, which no other program writes.
            part = sum_ptr + split * 3 * slot_rows + a_batch + rows
            tl.store(part, loss, mask=inside)
            tl.store(part + slot_rows, weighted, mask=inside)
            tl.store(part + 2 * slot_rows, slope, mask=inside)
    if GRADIENT:
        d = out0 + tl.arange(0, OUT)
        slot = split * slot_rows + a_batch + rows
        # (ROWS, OUT)
        tl.store(
            out_ptr + slot[:, None] * D + d[None, :], acc * scale, mask=inside[:, None] & (d < D)[None, :]
        )


class Sides(NamedTuple):
    """Rows, or columns, and the ids by which they are positives, (B, n) int64; None: by their indices."""

    rows: Rows
    ids: Tensor | None


def visit_pairs(
    rows: Sides,
    columns: Sides,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    sums: bool,
    gradient: bool,
    weight: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The sums (splits, 3, B, n) of every row's pairs, and parts (splits, B, n, D) of the rows' gradient, in float32.

    Args:
        sums, gradient: which of the two are wanted; the other is None.
        weight: (B, m) float32, of the columns' pairs in the gradient; None for 1.

    The gradient is that before the rows' normalisation. Cost: one launch; a B x n x m x D product, and one more for the
    gradient, more of both for features wider than a program's output.
    """
    batch, n, width = rows.rows.data.shape
    device, dtype = rows.rows.data.device, rows.rows.data.dtype
    tiles = (BOTH_TILES if sums else GRADIENT_TILES) if gradient else SCAN_TILES
    arch = architecture(device)
    tile = choose_tile(tiles, arch, dtype, width)
    # Of its own choice the assembler spills a few of float32, and on sm_100 of a gradient in bfloat16.
    alone = gradient and not sums and (arch, dtype) == ("sm100", torch.bfloat16)
    registers = 168 if alone or dtype == torch.float32 else None
    resident = tile.depth >= width
    chunks = ceil_div(width, tile.out) if gradient and not resident else 1
    programs = ceil_div(n, tile.rows) * chunks * batch
    splits = column_splits(device, programs, ceil_div(columns.rows.length, tile.cols))
    totals = logit_scale.new_empty(splits, 3, batch, n) if sums else None
    parts = logit_scale.new_empty(splits, batch, n, width) if gradient else None
    sigmoid_contrastive_pairs_kernel[(programs * splits,)](
        *rows.rows[:2],
        rows.ids,
        *columns.rows[:2],
        columns.ids,
        weight,
        logit_scale,
        logit_bias,
        totals,
        parts,
        batch,
        n,
        columns.rows.length,
        width,
        splits,
        chunks,
        SUMS=sums,
        GRADIENT=gradient,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        OUT=tile.out,
        RESIDENT=resident,
        PRECISION=dot_precision(rows.rows.data),
        PRODUCT=gradient_precision(rows.rows.data),
        UPCAST=upcast(rows.rows.data),
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=registers,
    )
    return totals, parts
