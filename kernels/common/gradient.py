"""Launcher of the gradient of row-wise and column-wise softmax cross-entropies with respect to the rows.

The formula, the tile and its owner are described in kernels/common/gradient_kernel.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmx_fast.kernels.common.gradient_kernel import contrastive_gradient_kernel
from cmx_fast.kernels.common.grids import ceil_div
from cmx_fast.kernels.common.norms import Rows
from cmx_fast.kernels.common.tiles import (
    GRADIENT_TILES,
    INTERPRETED,
    architecture,
    choose_tile,
    column_splits,
    dot_precision,
    upcast,
)


class Softmax(NamedTuple):
    """One softmax per row, as the gradient needs it.

    top: largest similarity. weight: upstream weight of the softmax, divided by the sum of the exponentials above top.
    share: what label smoothing subtracts from every logit's gradient, or None. Each is (B, n) float32; all have the
    same stride between samples.
    """

    top: Tensor
    weight: Tensor
    share: Tensor | None = None


class RowGradient(NamedTuple):
    """The kernel's result: sum_j H_ij c_j as (splits, B, n, D) and, for distances, sum_j H_ij as (splits, B, n)."""

    data: Tensor | None = None
    sums: Tensor | None = None
    splits: int = 0


def gradient_precision(x: Tensor) -> str:
    """Precision of the product of H with the columns, ``accumulate_product``'s PRODUCT."""
    if x.dtype == torch.bfloat16 and not INTERPRETED:
        return "bf16"
    return "tf32" if x.dtype == torch.float16 else dot_precision(x)


def row_gradient(
    rows: Rows,
    softmax: Softmax | None,
    cross: Rows | None,
    cross_softmax: Softmax | None,
    banks: Sequence[Rows],
    target: Tensor | None,
    logit_scale: Tensor,
    *,
    exclude: str,
    cross_row: bool,
    within: bool,
    similarity: str,
    measure: bool = False,
    grad: Tensor | None = None,
    back: Rows | None = None,
) -> tuple[RowGradient, RowGradient]:
    """Gradients of ``rows`` and ``back`` from their logits with ``cross``, ``banks`` and (within) each other.

    Args:
        softmax: of the rows over their candidates; needed for banks, within and ``cross_row``.
        cross_softmax: of the cross rows over theirs, among them ``rows``; None if they have none.
        exclude: which cross logits are positives: "column of row" (target is (B, n)), "row of column" (target is
            (B, m)), each the equal index for target None, "column of row and itself" (the equal index besides), or
            "nothing".
        measure: divide rows and cross rows by their norms, which every program finds for itself: Note [Norms in place],
            kernels/common/norms.py.
        grad: (B, n) factors that all weights still lack, or None.
        back: (B, n, D), the rows of ``cross_softmax``, whose gradient is made in the same launch; only for target None.
            Their cross rows are ``rows`` where ``cross`` is given (``cross`` must then be ``back``).

    Cost: one launch; none, and two empty results, where there are no logits.
    """
    cross_col = cross_softmax is not None and cross is not None
    if not (cross_row or cross_col):
        cross = None
    batch, n, width = rows.data.shape
    m = cross.length if cross is not None else 0
    device = rows.data.device
    tile = choose_tile(GRADIENT_TILES, architecture(device), rows.data.dtype, width)
    sizes = [m, *(bank.length for bank in banks), n if within else 0]
    tiles = sum(ceil_div(size, tile.cols) for size in sizes)
    if tiles == 0:
        return RowGradient(), RowGradient()
    resident = tile.depth >= width
    chunks = 1 if resident else ceil_div(width, tile.out)
    programs = ceil_div(n, tile.rows) * chunks * batch
    sides = 1 if back is None else 2
    splits = column_splits(device, sides * programs, tiles)
    smooth = any(s is not None and s.share is not None for s in (softmax, cross_softmax))
    gradients = [
        RowGradient(
            logit_scale.new_empty(splits, batch, n, width),
            logit_scale.new_empty(splits, batch, n) if similarity != "dot" else None,
            splits,
        )
        for _ in range(sides)
    ] + [RowGradient()]
    statistics = softmax or cross_softmax
    assert statistics is not None
    if target is None and exclude == "row of column":
        exclude = "column of row"
    contrastive_gradient_kernel[(sides * programs * splits,)](
        *rows,
        *(softmax or (None, None, None)),
        *(back or cross or (None, None, None)),
        *(cross_softmax or (None, None, None)),
        tuple(bank.data for bank in banks),
        tuple(bank.length for bank in banks),
        tuple(bank.inverse_norm for bank in banks),
        tuple(bank.squared_norm for bank in banks),
        target,
        logit_scale,
        grad,
        *gradients[0][:2],
        *(gradients[1][:2] if back is not None else (None, None)),
        statistics.top.stride(0),
        batch,
        n,
        m,
        width,
        splits,
        chunks,
        N_BANKS=len(banks),
        CROSS_ROW=cross_row,
        CROSS_COL=cross_col,
        WITHIN=within,
        EXCLUDE=exclude,
        SIMILARITY=similarity,
        MEASURE=measure,
        SMOOTH=smooth,
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
    )
    return gradients[0], gradients[1]
