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
anew, and the first of which stores the sums. Of long products of wide rows the derivatives are written out instead, a
chunk of rows at a time, and the library multiplies them (visit_by_chunks): two products, whatever the width.

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
from cmx_fast.kernels.common.library import accumulate, rows_per_chunk, worth_chunks
from cmx_fast.kernels.common.logits import LOG2E, chunked_products, load_tile, load_vector, softplus_beside
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    MAX_WIDTH,
    Tile,
    TileTable,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)

#: Sums alone, or beside derivatives that are written out: three reductions take more registers than a softmax's two.
SUM_TILES: TileTable = {
    ("sm80", torch.bfloat16): [
        (64, Tile(128, 64, 64, 0, 8, 3)),
        (128, Tile(128, 64, 128, 0, 8, 2)),
        (MAX_WIDTH, Tile(128, 32, 64, 0, 8, 3)),
    ],
    ("sm90", torch.bfloat16): [
        (64, Tile(128, 64, 64, 0, 8, 3)),
        (128, Tile(128, 64, 128, 0, 8, 3)),
        (256, Tile(128, 64, 256, 0, 8, 2)),
        (MAX_WIDTH, Tile(128, 32, 64, 0, 8, 4)),
    ],
    ("sm80", torch.float32): [(MAX_WIDTH, Tile(64, 32, 32, 0, 8, 2))],
}
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
    h_ptr,  # out, (n_a, n_c) derivatives of one sample by the product of the rows as they came in
    slot_rows,  # between the parts of the outputs: rows of all samples
    first,  # index of the first of the rows
    n_a,
    n_c,
    D,
    n_splits,
    n_chunks,
    SUMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    STORE: tl.constexpr,
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
    a_id = first + rows
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
        if GRADIENT or STORE:
            if c_weight_ptr is not None:
                h *= load_vector(c_weight_ptr + c_batch, col0, n_c, 0.0, COLS)[None, :]
            if c_inv_ptr is not None:
                # The columns of the product are those that came in, not the normalised ones.
                h *= c_inv[None, :]
        if STORE:
            address = h_ptr + rows.to(tl.int64)[:, None] * n_c + cols[None, :]
            # (ROWS, COLS)
            h = (h * scale).to(h_ptr.dtype.element_ty)
            tl.store(address, h, mask=inside[:, None] & (cols < n_c)[None, :])
        if GRADIENT:
            if not RESIDENT:
                # (COLS, OUT): the same columns, at the features of the gradient that this program owns.
                c = load_tile(c_ptr, col0, n_c, out0, D, COLS, OUT, UPCAST)
            acc, _ = accumulate_product(acc, h, c, PRODUCT)
    slot_rows = tl.cast(slot_rows, tl.int64)
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

    def part(self, sample: int, first: int, last: int) -> "Sides":
        """Rows ``first`` to ``last`` of a sample."""
        data, inverse = self.rows.data[sample, first:last], self.rows.inverse_norm
        norms = None if inverse is None else inverse[sample, first:last]
        return Sides(Rows(data, norms), None if self.ids is None else self.ids[sample, first:last])


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
    gradient. Of short products of features wider than a program's output, more of both.
    """
    batch, n, width = rows.rows.data.shape
    device, dtype = rows.rows.data.device, rows.rows.data.dtype
    arch = architecture(device)
    tiles = (BOTH_TILES if sums else GRADIENT_TILES) if gradient else SUM_TILES
    tile = choose_tile(tiles, arch, dtype, width)
    if gradient and worth_chunks(rows.rows.data, columns.rows.length, tile):
        return visit_by_chunks(rows, columns, logit_scale, logit_bias, sums, weight)
    registers = _registers(arch, dtype, tile, sums, gradient)
    chunks = ceil_div(width, tile.out) if gradient and tile.depth < width else 1
    programs = ceil_div(n, tile.rows) * chunks * batch
    splits = column_splits(device, programs, ceil_div(columns.rows.length, tile.cols))
    totals = logit_scale.new_empty(splits, 3, batch, n) if sums else None
    parts = logit_scale.new_empty(splits, batch, n, width) if gradient else None
    _launch(
        programs * splits, tile, rows, columns, weight, logit_scale, logit_bias, totals, parts, None, batch * n, 0,
        splits, chunks, registers,
    )  # fmt: skip
    return totals, parts


def visit_by_chunks(
    rows: Sides, columns: Sides, logit_scale: Tensor, logit_bias: Tensor, sums: bool, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The result of :func:`visit_pairs` with the gradient, by derivatives that are written out, a chunk at a time.

    Memory: one chunk of at most ``CHUNK_BYTES``, or of one row tile. Cost: two products, the second by ``torch.mm``
    with its precision for float32.
    """
    batch, n, width = rows.rows.data.shape
    m, dtype, device = columns.rows.length, rows.rows.data.dtype, rows.rows.data.device
    arch = architecture(device)
    tile = choose_tile(SUM_TILES, arch, dtype, width)
    registers = _registers(arch, dtype, tile, sums, False)
    size = rows_per_chunk(rows.rows.data, m, tile)
    blocks = ceil_div(size, tile.rows)
    splits = column_splits(device, blocks, ceil_div(m, tile.cols))
    totals = logit_scale.new_empty(splits, 3, batch, n) if sums else None
    gradient = logit_scale.new_zeros(batch, n, width)
    chunk = rows.rows.data.new_empty(size, m)
    for sample in range(batch):
        other = columns.part(sample, 0, m)
        for first in range(0, n, size):
            last = min(n, first + size)
            h = chunk[: last - first]
            _launch(
                ceil_div(last - first, tile.rows) * splits, tile, rows.part(sample, first, last), other,
                None if weight is None else weight[sample], logit_scale, logit_bias,
                None if totals is None else totals.view(-1)[sample * n + first :], None, h, batch * n, first, splits, 1,
                registers,
            )  # fmt: skip
            accumulate(gradient[sample, first:last], h, columns.rows.data[sample])
    return totals, gradient[None]


def _registers(arch: str, dtype: torch.dtype, tile: Tile, sums: bool, gradient: bool) -> int | None:
    """Registers of a thread where the assembler, of its own choice, takes fewer and spills some."""
    if dtype == torch.float32:
        spills = gradient
    elif gradient:
        spills = dtype == torch.bfloat16 and not sums and arch in ("sm100", "sm120")
    else:
        spills = dtype == torch.bfloat16 and arch == "sm100" and tile.cols == 32
    return 168 if spills else None


def _launch(
    programs: int,
    tile: Tile,
    rows: Sides,
    columns: Sides,
    weight: Tensor | None,
    logit_scale: Tensor,
    logit_bias: Tensor,
    totals: Tensor | None,
    parts: Tensor | None,
    derivatives: Tensor | None,
    slot_rows: int,
    first: int,
    splits: int,
    chunks: int,
    registers: int | None,
) -> None:
    data = rows.rows.data
    sigmoid_contrastive_pairs_kernel[(programs,)](
        *rows.rows[:2],
        rows.ids,
        *columns.rows[:2],
        columns.ids,
        weight,
        logit_scale,
        logit_bias,
        totals,
        parts,
        derivatives,
        slot_rows,
        first,
        rows.rows.length,
        columns.rows.length,
        data.shape[-1],
        splits,
        chunks,
        SUMS=totals is not None,
        GRADIENT=parts is not None,
        STORE=derivatives is not None,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        OUT=tile.out,
        RESIDENT=tile.depth >= data.shape[-1],
        PRECISION=dot_precision(data),
        PRODUCT=gradient_precision(data),
        UPCAST=upcast(data),
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=registers,
    )
