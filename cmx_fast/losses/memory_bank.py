"""A queue of past keys that serve as negatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.ops._implementations import transformed


class MemoryBank(nn.Module):
    """The last ``size`` keys as ``rows`` (size, dim) float32, oldest first (He et al. 2020, section 3.2).

    The bank starts with random unit vectors, as MoCo's and lightly's do. ``ids`` (size,) int64 has the sample of each
    row; it lies on the CPU, where batches are drawn, so that looking a sample up never waits for a GPU. Random rows,
    and keys without ids, have -1. Any batch size serves: it need not divide ``size``.

    A ring overwritten in place would change rows that a loss still needs for its backward pass. So the queue
    is a window that moves through twice its memory: keys are written behind the window, never into it, and
    when the memory ends the window starts over in a new one. ``rows`` handed out earlier stay as they were;
    no step copies the bank, and over a full turn each row is copied once. Memory: 2 x size x dim elements.

    Args:
        size: number of keys, K.
        dim: features per key, D.
        persistent: True: ``state_dict`` holds the rows and ids. Default False: lightly's does not.

    In DataParallel ``enqueue`` is refused: each device works on a replica that is thrown away after the pass, and its
    keys with it. Enqueue behind the parallel forward pass, or train with DistributedDataParallel.

    Raises:
        ValueError: a size or dim below 1, or keys of another width. RuntimeError: ``enqueue`` in DataParallel.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import MemoryBank
        >>> bank = MemoryBank(6, 4)
        >>> bank.enqueue(torch.ones(4, 4))
        >>> bank.rows[2:].sum()
        tensor(16.)
    """

    rows: Tensor

    def __init__(self, size: int, dim: int, *, persistent: bool = False) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, got {size} and {dim}")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1), persistent=False)
        self.ids = torch.full((size,), -1)
        self.persistent = persistent

    @torch.no_grad()
    @torch.compiler.disable  # the window's place changes at every step: nothing to trace
    def enqueue(self, keys: Tensor, ids: Tensor | None = None) -> None:
        """Append ``keys`` (N, D) of samples ``ids`` (N,) and drop the N oldest rows; of more than K the last stay."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "MemoryBank.enqueue was called in a replica of DataParallel, which loses the keys; enqueue behind the "
                "parallel forward pass, or use DistributedDataParallel"
            )
        if transformed():
            raise NotImplementedError(
                "torch.func's transforms and forward-mode derivatives can't move a bank; give info_nce the bank's rows "
                "in them, and enqueue outside"
            )
        size, dim = self.rows.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys must have shape (N, {dim}), got {tuple(keys.shape)}")
        if ids is not None and ids.shape != keys.shape[:1]:
            raise ValueError(f"ids must have shape ({len(keys)},), one per key; got {tuple(ids.shape)}")
        key_ids = torch.full((len(keys),), -1) if ids is None else ids.cpu()
        keys = keys[-size:]
        self.ids = torch.cat([self.ids, key_ids])[-size:]
        start = self.rows.storage_offset()
        end = start + self.rows.numel()
        if (end + keys.numel()) * self.rows.element_size() > self.rows.untyped_storage().nbytes():
            self.rows = self.rows.new_empty(2 * size, dim)[:size].copy_(self.rows)
            start, end = 0, self.rows.numel()
        # .data has its own version counter: the new keys lie outside the rows that autograd watches.
        self.rows.data.as_strided(keys.shape, (dim, 1), end).copy_(keys)
        self.rows = self.rows.data.as_strided((size, dim), (dim, 1), start + keys.numel())

    def without(self, ids: Tensor) -> Tensor:
        """The rows without the keys of these samples (N,) int64, so that no sample is its own negative.

        The result is ``rows`` itself where it has none of their keys, the rule while the bank is small beside the data
        set; else a copy.
        """
        own = torch.isin(self.ids, ids.cpu())
        return self.rows[(~own).nonzero().flatten().to(self.rows.device)] if own.any() else self.rows

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent:
            # A copy: a file of the window alone would hold all the memory that it moves through.
            destination |= {prefix + "rows": self.rows.clone(), prefix + "ids": self.ids}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        if not self.persistent:
            return
        missing, unexpected, errors = lists
        for name, own in (("rows", self.rows), ("ids", self.ids)):
            stored = state_dict.get(prefix + name)
            if stored is None:
                missing.append(prefix + name)
            elif stored.shape != own.shape:
                errors.append(
                    f"{prefix}{name} is stored as {tuple(stored.shape)}, this bank has {tuple(own.shape)}"
                )
            else:
                setattr(self, name, stored.to(own.device, own.dtype, copy=True))
            if prefix + name in unexpected:
                unexpected.remove(prefix + name)

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.rows.shape)
