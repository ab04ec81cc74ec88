"""InfoNCE's gradients for wide features: the logits' gradient by a kernel, both products with it by the library.

Algorithm: the logits' gradient is written out, a chunk of rows at a time (Note [Gradients by chunks]). Tile and owner:
a program owns one (ROWS, COLS) tile of the chunk and makes its similarities from DEPTH features at a time; each element
is written once, by its owner. The library then multiplies the chunk with the columns (for the rows' gradient) and its
transpose with the rows (for the columns').

Why it is right: the formula is kernels/common/gradient_kernel.py's without positives, which info_nce/finish.py adds in
float32; rounding the chunk to the inputs' dtype costs each element a relative error only, for which bfloat16 has the
range and float16 has not. Sums over chunks are float32, in the order of the rows. Memory: one chunk of at most
``CHUNK_BYTES`` (kernels/common/library.py), or of one row tile where that is more, whatever N and M.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.gradient import RowGradient, Softmax
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.library import accumulate, rows_per_chunk, worth_chunks
from cmx_fast.kernels.common.logits import (
    base_two,
    chunked_products,
    exponential_below,
    load_targets,
    load_vector,
    rounded_product,
)
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    LOGIT_TILES,
    architecture,
    choose_tile,
    dot_precision,
    upcast,
)

# Note [Gradients by chunks]
# ~~~~~~~~~~~~~~~~~~~~~~~~~~
# A fused gradient program holds as many output features as its registers do, and for each such part of the output it
# makes the similarities anew: at D = 512 twelve products in all, forward and backward. Here they are made once more,
# which leaves five. Worth it once the products are long enough to hide the launches (worth_chunks).
#: Column tiles of a group: programs walk a group row by row, so that its columns stay in the L2 cache beside the rows.
GROUP = 16


@triton.jit
def info_nce_logit_gradient_kernel(
    a_ptr,  # (n_a, D): all rows, of which the chunk's are taken
    a_inv_ptr,  # (n_a,) inverse norms or None
    a_top_ptr,  # (n_a,) of the rows' softmax; None: they have none
    a_weight_ptr,
    a_share_ptr,
    a_grad_ptr,  # (n_a,) factors that the weights still lack, or None
    c_ptr,  # (n_c, D): the columns, with the same five vectors
    c_inv_ptr,
    c_top_ptr,
    c_weight_ptr,
    c_share_ptr,
    c_grad_ptr,
    target_ptr,  # (n_a,) the column that is a row's positive; None: the equal index
    scale_ptr,
    out_ptr,  # out, (last - first, n_c)
    first,  # rows of the chunk
    last,
    n_c,
    D,
    EXCLUDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pid = tl.program_id(0)
    row_blocks = tl.cdiv(last - first, ROWS)
    col_blocks = tl.cdiv(n_c, COLS)
    group = pid // (GROUP * row_blocks)
    width = tl.minimum(GROUP, col_blocks - group * GROUP)
    place = pid % (GROUP * row_blocks)
    row0 = first + place // width * ROWS
    col0 = (group * GROUP + place % width) * COLS
    rows = row0 + tl.arange(0, ROWS)
    cols = col0 + tl.arange(0, COLS)
    inside = rows < last
    scale = tl.load(scale_ptr)

    u = chunked_products(a_ptr, row0, last, c_ptr, col0, n_c, D, ROWS, COLS, DEPTH, PRECISION, UPCAST)
    # (ROWS,), (COLS,)
    if a_inv_ptr is not None:
        u = rounded_product(u, tl.load(a_inv_ptr + rows, mask=inside, other=1.0)[:, None])
    if c_inv_ptr is not None:
        u = rounded_product(u, load_vector(c_inv_ptr, col0, n_c, 1.0, COLS)[None, :])
    scale2 = base_two(scale)
    h = tl.zeros((ROWS, COLS), tl.float32)
    if a_top_ptr is not None:
        # (ROWS,) each, of the rows' softmax
        top = tl.load(a_top_ptr + rows, mask=inside, other=float("inf"))
        weight = tl.load(a_weight_ptr + rows, mask=inside, other=0.0)
        if a_grad_ptr is not None:
            weight *= tl.load(a_grad_ptr + rows, mask=inside, other=0.0)
        h += weight[:, None] * exponential_below(u, top[:, None], scale2)
        if a_share_ptr is not None:
            h -= tl.load(a_share_ptr + rows, mask=inside, other=0.0)[:, None]
    if c_top_ptr is not None:
        # (COLS,) each, of the columns' softmax
        top = load_vector(c_top_ptr, col0, n_c, float("inf"), COLS)
        weight = load_vector(c_weight_ptr, col0, n_c, 0.0, COLS)
        if c_grad_ptr is not None:
            weight *= load_vector(c_grad_ptr, col0, n_c, 0.0, COLS)
        h += weight[None, :] * exponential_below(u, top[None, :], scale2)
        if c_share_ptr is not None:
            h -= load_vector(c_share_ptr, col0, n_c, 0.0, COLS)[None, :]
    if EXCLUDE:
        excluded = rows
        if target_ptr is not None:
            excluded = load_targets(target_ptr, rows, inside)
        h = tl.where(cols[None, :] == excluded[:, None], 0.0, h)
    h *= scale
    # Rows and columns of the products are those that came in, not the normalised ones.
    if a_inv_ptr is not None:
        h *= tl.load(a_inv_ptr + rows, mask=inside, other=1.0)[:, None]
    if c_inv_ptr is not None:
        h *= load_vector(c_inv_ptr, col0, n_c, 1.0, COLS)[None, :]
    # (ROWS, COLS)
    address = out_ptr + (rows - first).to(tl.int64)[:, None] * n_c + cols[None, :]
    tl.store(address, h.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (cols < n_c)[None, :])


def worth_info_nce_chunks(query: Tensor, keys: int, similarity: str) -> bool:
    """True if it is :func:`worth_chunks`, and the similarity is the one that the kernel here makes."""
    tile = choose_tile(GRADIENT_TILES, architecture(query.device), query.dtype, query.shape[-1])
    return similarity == "dot" and worth_chunks(query, keys, tile)


def gradients_by_chunks(
    queries: Rows,
    row_softmax: Softmax,
    keys: Rows,
    col_softmax: Softmax | None,
    banks: Sequence[Rows],
    target: Tensor | None,
    logit_scale: Tensor,
    grad: Tensor | None,
    *,
    in_batch: bool,
    within: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[RowGradient, RowGradient]:
    """The queries' and the keys' gradients, in the form of :func:`cmx_fast.kernels.common.gradient.row_gradient`.

    Memory: the gradients in float32 and one chunk of at most ``CHUNK_BYTES``. Cost: a product for the similarities
    and one for each needed side, by ``torch.mm`` with its precision for float32.
    """
    dquery = _sums(queries) if need_query else None
    dkey = _sums(keys) if need_key else None
    for sample in range(len(queries.data)):
        own, other = _sample(queries, sample), _sample(keys, sample)
        row, col = (
            s and Softmax(*(x if x is None else x[sample] for x in s)) for s in (row_softmax, col_softmax)
        )
        factor = None if grad is None else grad[sample]
        positive = None if target is None else target[sample]
        query_sum, key_sum = (None if sums is None else sums[sample] for sums in (dquery, dkey))
        if in_batch:
            _add(own, other, row, col, factor, positive, logit_scale, True, query_sum, key_sum)
        sides = [(own, row, query_sum)] + ([(other, col, key_sum)] if col is not None else [])
        for rows, softmax, total in sides:
            if total is None:
                continue
            for bank in banks:
                _add(rows, bank, softmax, None, factor, None, logit_scale, False, total, None)
            if within:
                _add(rows, rows, softmax, softmax, factor, None, logit_scale, True, total, None)
    return _finished(queries, dquery), _finished(keys, dkey)


def _sums(rows: Rows) -> Tensor:
    return torch.zeros(rows.data.shape, dtype=torch.float32, device=rows.data.device)


def _sample(rows: Rows, number: int) -> Rows:
    return Rows(rows.data[number], None if rows.inverse_norm is None else rows.inverse_norm[number])


def _finished(rows: Rows, total: Tensor | None) -> RowGradient:
    """The gradient with respect to the normalised rows: the chunks' is with respect to the rows as they came in."""
    if total is None:
        return RowGradient()
    if rows.inverse_norm is not None:
        total /= rows.inverse_norm[..., None]
    return RowGradient(total[None], None, 1)


def _add(
    rows: Rows,
    columns: Rows,
    row_softmax: Softmax | None,
    col_softmax: Softmax | None,
    grad: Tensor | None,
    target: Tensor | None,
    logit_scale: Tensor,
    exclude: bool,
    row_sum: Tensor | None,
    col_sum: Tensor | None,
) -> None:
    """Add the gradient of the logits of ``rows`` with ``columns`` to their float32 sums, (n, D) and (m, D)."""
    (n, width), m = rows.data.shape, columns.length
    tile = choose_tile(LOGIT_TILES, architecture(rows.data.device), rows.data.dtype, width)
    size = rows_per_chunk(rows.data, m, tile)
    if m == 0:
        return
    chunk = rows.data.new_empty(size, m)
    for first in range(0, n, size):
        last = min(n, first + size)
        h = chunk[: last - first]
        info_nce_logit_gradient_kernel[(ceil_div(last - first, tile.rows) * ceil_div(m, tile.cols),)](
            rows.data,
            rows.inverse_norm,
            *(row_softmax or (None, None, None)),
            grad if row_softmax is not None else None,
            columns.data,
            columns.inverse_norm,
            *(col_softmax or (None, None, None)),
            grad if col_softmax is not None else None,
            target,
            logit_scale,
            h,
            first,
            last,
            m,
            width,
            EXCLUDE=exclude,
            ROWS=tile.rows,
            COLS=tile.cols,
            DEPTH=tile.depth,
            GROUP=GROUP,
            PRECISION=dot_precision(rows.data),
            UPCAST=upcast(rows.data),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if row_sum is not None:
            accumulate(row_sum[first:last], h, columns.data)
        if col_sum is not None:
            accumulate(col_sum, h.T, rows.data[first:last])
