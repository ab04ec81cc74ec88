"""Products that PyTorch's library makes of what a kernel has written out, a chunk of rows at a time."""

import torch
from torch import Tensor

#: Of a chunk, whatever the number of rows and columns.
CHUNK_BYTES = 512 * 2**20
#: Below this many multiplications of one product the launches cost more than the products that chunks save.
FEWEST_MULTIPLICATIONS = 2**29


def accumulate(total: Tensor, h: Tensor, rows: Tensor) -> None:
    """``total += h @ rows`` in float32."""
    if h.dtype == torch.float32:
        total.addmm_(h, rows)
    elif h.is_cuda:
        torch.addmm(total, h, rows, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(h.float(), rows.float())
