"""InfoNCE of queries against banks alone: softmax statistics and the softmax-weighted mean rows in one read.

Algorithm: attention whose keys and values are the bank's rows (Note [Banks alone]). Tile and owner: a program owns ROWS
queries, OUT features of their mean rows and one split of the banks' column tiles; it keeps the queries resident, (ROWS,
DEPTH), where they fit, and walks the columns COLS at a time. It accumulates (ROWS, OUT) sums in float32, rescaled as
the running maximum rises, and leaves them with the statistics in the slot of its split: Note [Column splits],
kernels/common/tiles.py. The loss kernel brings the slots to the common maximum (:func:`store_mean_rows`).

Why it is right: exponentials are of differences from the running maximum, at most 1, and the sums of rows are rescaled
by the same factor as their normaliser, so the quotient is a convex combination of the bank's rows at any temperature.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.gradient import gradient_precision
from cmx_fast.kernels.common.gradient_kernel import accumulate_product
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    empty_statistics,
    finite_shift,
    load_tile,
)
from cmx_fast.kernels.common.norms import Rows, inverse_norms_at
from cmx_fast.kernels.common.scan import Partials
from cmx_fast.kernels.common.segments import tile_range
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)

# Note [Banks alone]
# ~~~~~~~~~~~~~~~~~~
# Where only banks push a query q away, the gradient with respect to q is scale * weight * (mean - key), with the mean
# of the banks' rows b_j under the softmax of q . b_j. The mean takes two products, forward; to recompute the
# similarities backward would take a third, and read the banks once more (MoCo's queue has 65,536 rows). The means, one
# row per query, are all that the forward pass keeps (`saved`, with `cache`).


@triton.jit
def info_nce_bank_kernel(
    a_ptr,  # (n, D)
    banks,  # tuple of (K, D)
    bank_sizes,
    scale_ptr,
    part_ptr,  # out, (n_splits, 3, n)
    sum_ptr,  # out, (n_splits, n, D): of the banks' rows, weighted by the exponentials above the split's maximum
    n,
    D,
    n_splits,
    n_chunks,
    N_BANKS: tl.constexpr,
    MEASURE: tl.constexpr,  # the rows of a are to be normalised
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
    n_blocks = tl.cdiv(n, ROWS)
    # Row blocks vary fastest: neighbouring programs read the same columns, which meet in the L2 cache.
    row0 = pid % n_blocks * ROWS
    pid = pid // n_blocks
    out0 = pid % n_chunks * OUT
    split = pid // n_chunks
    scale2 = base_two(tl.load(scale_ptr))
    tile_lo, tile_hi = tile_range(split, n_splits, n, n, bank_sizes, False, N_BANKS, False, COLS)

    rows = row0 + tl.arange(0, ROWS)
    inside = rows < n
    # (ROWS,), then (ROWS, DEPTH)
    a_inv = inverse_norms_at(a_ptr, row0, n, D, ROWS, UPCAST) if MEASURE else None
    a = load_tile(a_ptr, row0, n, 0, D, ROWS, DEPTH, UPCAST) if RESIDENT else None
    maximum, total, weighted, _ = empty_statistics(ROWS)
    sums = tl.zeros((ROWS, OUT), tl.float32)
    offset = 0  # of the bank's first tile among all tiles
    for i in tl.static_range(N_BANKS):
        size = tl.cdiv(bank_sizes[i], COLS)
        for tile in range(tl.maximum(tile_lo - offset, 0), tl.minimum(tile_hi - offset, size)):
            col0 = tile * COLS
            if RESIDENT:
                # (COLS, DEPTH), and with DEPTH >= D also the (COLS, OUT) of the second product.
                c = load_tile(banks[i], col0, bank_sizes[i], 0, D, COLS, DEPTH, UPCAST)
                u = tl.dot(a, tl.trans(c), input_precision=PRECISION)
            else:
                u = chunked_products(
                    a_ptr, row0, n, banks[i], col0, bank_sizes[i], D, ROWS, COLS, DEPTH, PRECISION, UPCAST
                )
                # (COLS, OUT)
                c = load_tile(banks[i], col0, bank_sizes[i], out0, D, COLS, OUT, UPCAST)
            if MEASURE:
                u *= a_inv[:, None]
            keep = (col0 + tl.arange(0, COLS) < bank_sizes[i])[None, :]
            candidates = tl.where(keep, u, float("-inf"))
            largest = tl.maximum(maximum, tl.max(candidates, 1))
            shift = finite_shift(largest)
            e = tl.exp2((candidates - shift[:, None]) * scale2)
            factor = tl.exp2((maximum - shift) * scale2)
            total = total * factor + tl.sum(e, 1)
            weighted = weighted * factor + tl.sum(e * u, 1)
            sums, e = accumulate_product(sums * factor[:, None], e, c, PRODUCT)
            maximum = largest
        offset += size

    d = out0 + tl.arange(0, OUT)
    slot = tl.cast(split, tl.int64) * n + rows
    # (ROWS, OUT)
    tl.store(sum_ptr + slot[:, None] * D + d[None, :], sums, mask=inside[:, None] & (d < D)[None, :])
    if out0 == 0:
        # (ROWS,) each: the same in every chunk of features; the first one stores them.
        part = part_ptr + tl.cast(split, tl.int64) * 3 * n + rows
        tl.store(part, maximum, mask=inside)
        tl.store(part + n, total, mask=inside)
        tl.store(part + 2 * tl.cast(n, tl.int64), weighted, mask=inside)


@triton.jit
def store_mean_rows(
    mean_ptr,  # (n, D)
    part_ptr,  # (slots, 3, n)
    sum_ptr,  # (slots, n, D)
    slots,
    maximum,  # (BLOCK,) of all slots, and their total
    total,
    scale2,
    n,
    D,
    index,
    inside,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Write the mean rows ``index`` from the slots of :func:`info_nce_bank_kernel`; an empty bank's mean is 0."""
    n = tl.cast(n, tl.int64)
    shift = finite_shift(maximum)
    for d0 in range(0, D, DEPTH):
        d = d0 + tl.arange(0, DEPTH)
        mask = inside[:, None] & (d < D)[None, :]
        offsets = index[:, None] * D + d[None, :]
        mean = tl.zeros((BLOCK, DEPTH), tl.float32)
        for slot in range(0, slots):
            # (BLOCK,), (BLOCK, DEPTH)
            own = tl.load(part_ptr + slot * 3 * n + index, mask=inside, other=float("-inf"))
            sums = tl.load(sum_ptr + slot * n * D + offsets, mask=mask, other=0.0)
            mean += tl.exp2((own - shift) * scale2)[:, None] * sums
        mean = tl.where((total == 0)[:, None], mean, mean / total[:, None])
        tl.store(mean_ptr + offsets, mean, mask=mask)


def scan_banks(
    queries: Rows, banks: Sequence[Rows], logit_scale: Tensor, *, measure: bool
) -> tuple[Partials, Tensor]:
    """Partial statistics of every query over the banks, as of ``scan``, and (slots, B * n, D) partial sums of rows.

    Args:
        measure: divide the queries by their norms, which every program finds for its rows.

    One launch. Cost: two products; rows wider than a program's output make the first once per part of the second.
    """
    n, width = queries.data.shape[:2].numel(), queries.data.shape[2]
    device = queries.data.device
    tile = choose_tile(GRADIENT_TILES, architecture(device), queries.data.dtype, width)
    resident = tile.depth >= width
    chunks = 1 if resident else ceil_div(width, tile.out)
    programs = ceil_div(n, tile.rows) * chunks
    splits = column_splits(device, programs, sum(ceil_div(bank.length, tile.cols) for bank in banks))
    part = logit_scale.new_empty(splits, 3, n)
    sums = logit_scale.new_empty(splits, n, width)
    info_nce_bank_kernel[(programs * splits,)](
        queries.data,
        tuple(bank.data for bank in banks),
        tuple(bank.length for bank in banks),
        logit_scale,
        part,
        sums,
        n,
        width,
        splits,
        chunks,
        N_BANKS=len(banks),
        MEASURE=measure,
        ROWS=tile.rows,
        COLS=tile.cols,
        DEPTH=tile.depth,
        OUT=tile.out,
        RESIDENT=resident,
        PRECISION=dot_precision(queries.data),
        PRODUCT=gradient_precision(queries.data),
        UPCAST=upcast(queries.data),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return Partials(part, splits), sums
