"""A queue of past keys that serve as negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """The last ``size`` keys as ``rows`` (size, dim) float32, oldest first (He et al. 2020, section 3.2).

    The bank starts with random unit vectors, as MoCo's and lightly's do, and is no part of ``state_dict``, as
    lightly's is not.

    A ring overwritten in place would change rows that a loss still needs for its backward pass. So the queue
    is a window that moves through twice its memory: keys are written behind the window, never into it, and
    when the memory ends the window starts over in a new one. ``rows`` handed out earlier stay as they were;
    no step copies the bank, and over a full turn each row is copied once. Memory: 2 x size x dim elements.

    Args:
        size: number of keys, K.
        dim: features per key, D.

    Raises:
        ValueError: a size or dim below 1, or keys of another width.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import MemoryBank
        >>> bank = MemoryBank(6, 4)
        >>> bank.enqueue(torch.ones(4, 4))
        >>> bank.rows[2:].sum()
        tensor(16.)
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, got {size} and {dim}")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1), persistent=False)

    @torch.no_grad()
    @torch.compiler.disable  # the window's place changes at every step: nothing to trace
    def enqueue(self, keys: Tensor) -> None:
        """Append ``keys`` (N, D) and drop the N oldest rows; of more than K keys the last K stay."""
        size, dim = self.rows.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys must have shape (N, {dim}), got {tuple(keys.shape)}")
        keys = keys[-size:]
        start = self.rows.storage_offset()
        end = start + self.rows.numel()
        if (end + keys.numel()) * self.rows.element_size() > self.rows.untyped_storage().nbytes():
            self.rows = self.rows.new_empty(2 * size, dim)[:size].copy_(self.rows)
            start, end = 0, self.rows.numel()
        # .data has its own version counter: what is written lies outside the rows that autograd watches.
        self.rows.data.as_strided(keys.shape, (dim, 1), end).copy_(keys)
        self.rows = self.rows.data.as_strided((size, dim), (dim, 1), start + keys.numel())

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.rows.shape)
