"""Inverse norms and squared norms of matrix rows, for several matrices in one launch.

A program owns BLOCK rows of one of the matrices and walks their features, (BLOCK, DEPTH) at a time; the matrices follow
each other in the grid, so that the programs of all of them are one launch. Sums of squares are float32.
Matrices stay as they came in: kernels multiply the *products* by the inverse norms, which rounds once in float32, where
a normalised copy in bfloat16 would round every feature.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.logits import load_tile

ROWS_PER_PROGRAM = 16
DEPTH = 64


class Rows(NamedTuple):
    """Rows of features with what the similarity needs to know about them.

    data: (B, n, D) or, for a bank, (K, D), contiguous. inverse_norm: (B, n) float32 if the rows are to be normalised.
    squared_norm: (B, n) float32, of the rows after normalisation, if the similarity is a distance.
    """

    data: Tensor
    inverse_norm: Tensor | None = None
    squared_norm: Tensor | None = None

    @property
    def length(self) -> int:
        return self.data.shape[-2]


@triton.jit
def inverse_norm(squares):
    """1 / max(norm, 1e-12) from the sum of squares, as torch.nn.functional.normalize."""
    return 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)


@triton.jit
def through_normalization(gradient, unit, squares, scale):
    """Gradient with respect to rows from that with respect to ``unit = scale * rows``; all of D in the tile.

    d(x / |x|) removes what lies along the row: scale * (g - <g, unit> unit).
    """
    # A norm below the floor is a constant: nothing to project out.
    radial = tl.where(squares > 1e-24, tl.sum(gradient * unit, 1), 0.0)
    return scale[:, None] * (gradient - radial[:, None] * unit)


@triton.jit
def inverse_norms_at(ptr, first, n_rows, D, ROWS: tl.constexpr, UPCAST: tl.constexpr):
    """(ROWS,) inverse norms of rows ``first...`` of a row-major (n_rows, D) matrix: see Note [Norms in place]."""
    FEW: tl.constexpr = 32  # a matrix kernel has no more registers to spare
    squares = tl.zeros((ROWS,), tl.float32)
    for d0 in tl.range(0, D, FEW, num_stages=1):
        # (ROWS, FEW)
        tile = load_tile(ptr, first, n_rows, d0, D, ROWS, FEW, UPCAST).to(tl.float32)
        squares += tl.sum(tile * tile, 1)
    return inverse_norm(squares)


@triton.jit
def measure_rows(
    pid, matrices, inverses, squared, counts, D, N: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    """Measure BLOCK rows: the work of program ``pid`` of those that the N matrices take together."""
    start = 0
    for i in tl.static_range(N):
        stop = start + tl.cdiv(counts[i], BLOCK)
        if (pid >= start) & (pid < stop):
            rows = (pid - start).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = rows < counts[i]
            squares = tl.zeros((BLOCK,), tl.float32)
            for d0 in range(0, D, DEPTH):
                d = d0 + tl.arange(0, DEPTH)
                mask = inside[:, None] & (d < D)[None, :]
                # (BLOCK, DEPTH)
                x = tl.load(matrices[i] + rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
                squares += tl.sum(x * x, 1)
            # (BLOCK,) each
            if inverses[i] is not None:
                scale = inverse_norm(squares)
                tl.store(inverses[i] + rows, scale, mask=inside)
                squares *= scale * scale
            if squared[i] is not None:
                tl.store(squared[i] + rows, squares, mask=inside)
        start = stop


@triton.jit
def row_norms_kernel(
    matrices, inverses, squared, counts, D, N: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    measure_rows(tl.program_id(0), matrices, inverses, squared, counts, D, N, BLOCK, DEPTH)


def allocate_rows(data: Tensor, normalize: bool, distance: bool) -> Rows:
    """Rows whose norms a kernel is still to write."""
    shape = data.shape[:-1]
    return Rows(
        data,
        data.new_empty(shape, dtype=torch.float32) if normalize else None,
        data.new_empty(shape, dtype=torch.float32) if distance else None,
    )


FINISH_ELEMENTS = 2048  # features that one program of an O(N D) kernel holds


def finish_tile(width: int) -> tuple[int, int]:
    """Rows and padded width of a tile that holds whole rows of features."""
    padded = next_power_of_2(width)
    return max(1, FINISH_ELEMENTS // padded), padded


def norm_arguments(rows: Sequence[Rows]) -> tuple[tuple, tuple, tuple, tuple]:
    """The matrices that need a measurement, as the arguments of :func:`measure_rows` behind ``pid``."""
    unmeasured = [r for r in rows if r.inverse_norm is not None or r.squared_norm is not None]
    return (
        tuple(r.data for r in unmeasured),
        tuple(r.inverse_norm for r in unmeasured),
        tuple(r.squared_norm for r in unmeasured),
        tuple(r.data.shape[:-1].numel() for r in unmeasured),
    )


def norm_programs(counts: Sequence[int]) -> int:
    """Number of programs that :func:`measure_rows` needs for matrices of so many rows."""
    return sum(ceil_div(count, ROWS_PER_PROGRAM) for count in counts)


# Note [Norms in place]
# ~~~~~~~~~~~~~~~~~~~~~
# Below FEWEST_MEASURED_ONCE multiplications of a product, programs that find the norms of their rows and columns again
# and again (MEASURE in the matrix kernels) cost less than the launch that would find them once. They read FEW features
# at a time beside the product's own tiles; float32 tiles leave no registers for it.
FEWEST_MEASURED_ONCE = 2**29
MEASURED_IN_PLACE = {torch.bfloat16, torch.float16}


def worth_measuring_in_place(query: Tensor, keys: int, similarity: str) -> bool:
    """True if the matrix kernels should find the norms of queries (B, N, D) and ``keys`` keys themselves."""
    small = query.numel() * keys < FEWEST_MEASURED_ONCE
    return small and similarity == "dot" and query.dtype in MEASURED_IN_PLACE


def measure(rows: Sequence[Rows]) -> None:
    """Fill the norms of all rows: one launch, none where nothing is asked for."""
    arguments = norm_arguments(rows)
    programs = norm_programs(arguments[-1])
    if programs:
        width = rows[0].data.shape[-1]
        row_norms_kernel[(programs,)](*arguments, width, len(arguments[-1]), ROWS_PER_PROGRAM, DEPTH)
