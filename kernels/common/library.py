"""Products that PyTorch's library makes of what a kernel has written out, a chunk of rows at a time."""

import torch
from torch import Tensor

from cmx_fast.kernels.common.tiles import Tile

#: Of a chunk, whatever the number of rows and columns.
CHUNK_BYTES = 512 * 2**20
#: Below this many multiplications of one product the launches cost more than the products that chunks save.
FEWEST_MULTIPLICATIONS = 2**29


def worth_chunks(rows: Tensor, columns: int, tile: Tile) -> bool:
    """True if a fused kernel of this tile would make many similarities of the rows (B, n, D) several times."""
    n, width = rows.shape[1:]
    return (
        rows.dtype != torch.float16  # has not the range that the gradient needs
        and width > tile.out
        and n * columns * width >= FEWEST_MULTIPLICATIONS
    )


def rows_per_chunk(rows: Tensor, columns: int, tile: Tile) -> int:
    """The rows of a chunk of (*, n, D): whole tiles within :data:`CHUNK_BYTES`, one at least, but no more than n."""
    fitting = CHUNK_BYTES // max(1, columns * rows.element_size())
    return min(rows.shape[-2], max(tile.rows, fitting // tile.rows * tile.rows))


def accumulate(total: Tensor, h: Tensor, rows: Tensor) -> None:
    """``total += h @ rows`` in float32."""
    if h.dtype == torch.float32:
        total.addmm_(h, rows)
    elif h.is_cuda:
        torch.addmm(total, h, rows, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(h.float(), rows.float())
