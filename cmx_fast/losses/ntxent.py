"""NT-Xent, SimCLR's and MoCo's loss, with lightly's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import cmx_fast
from cmx_fast.losses._checks import temperature_of
from cmx_fast.ops import info_nce, supcon

if TYPE_CHECKING:
    from cmx_fast.losses.memory_bank import MemoryBank

TEMPERATURE = 0.5


class NTXentLoss(nn.Module):
    """lightly's ``NTXentLoss``: SimCLR's loss of two views or, with a memory bank, MoCo's.

    Rows are divided by their norm inside. Without a bank each of the 2N rows has to find its other view among
    the 2N - 1 other rows (Chen et al. 2020, eq. 1), which is SupCon with every pair a class of its own. With
    a bank each row of ``out0`` has to find its row of ``out1`` among that and the K bank rows (He et al.
    2020, eq. 1), and then ``out1``, normalised, enters the bank if ``out0`` requires a gradient: evaluation
    leaves the bank alone.

    Args:
        temperature: the logits are divided by it. Default 0.5: lightly's and SimCLR's.
        memory_bank_size: (K, D), or 0 for none (default: lightly's). K alone: D is that of the first batch, with which
            the bank is made; lightly 1.6 refuses that, earlier ones took it with a warning.
        gather_distributed: with several processes, the rows of all are candidates, and the loss is the whole batch's,
            the same in every process (lightly's is the own rows' part; the mean is this). Gradients are right once
            they are averaged, as DistributedDataParallel does. The bank takes the keys of all, in the same order
            everywhere; its loss stays that of the own rows.
        logit_scale: 1 / temperature, in its place. Ours.

    Call:
        ``loss(out0, out1)`` with two (N, D) tensors of one dtype.

    Differences from lightly: the temperature must be positive; the loss of half precision is float32; where a batch
    runs over the end of the bank, lightly drops the surplus rows and this bank keeps them. Errors, memory and cost are
    those of :func:`cmx_fast.ops.supcon` (M = 2N) and :func:`cmx_fast.ops.info_nce`.

    Example:
        >>> import torch
        >>> from cmx_fast.losses import NTXentLoss
        >>> view0, view1 = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
        >>> NTXentLoss(memory_bank_size=(4096, 64))(view0, view1).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = TEMPERATURE,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        if gather_distributed and not dist.is_available():
            raise ValueError(
                "gather_distributed=True needs a PyTorch with torch.distributed; this one has none"
            )
        self.temperature = temperature_of(temperature, logit_scale, TEMPERATURE)
        self.gather_distributed = gather_distributed
        self.memory_bank: MemoryBank | None = None
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
        if len(size) not in (1, 2) or min(size) < 0:
            raise ValueError(
                f"memory_bank_size must be 0, K or (K, D), numbers of keys and features; got {memory_bank_size!r}"
            )
        #: Keys of a bank that waits for the first batch, to know their features.
        self.keys_to_come = size[0] if len(size) == 1 else 0
        if len(size) == 2 and size[0]:
            self.memory_bank = cmx_fast.losses.MemoryBank(*size)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if out0.shape != out1.shape or out0.dim() != 2:
            raise ValueError(f"out0 and out1 must both have shape (N, D), got {out0.shape} and {out1.shape}")
        if self.keys_to_come:
            self.memory_bank = cmx_fast.losses.MemoryBank(self.keys_to_come, out0.shape[1]).to(out0.device)
            self.keys_to_come = 0
        if self.memory_bank is None:
            pair = torch.arange(out0.shape[0], device=out0.device).repeat(2)
            views = torch.cat([out0, out1])
            if self.gather_distributed and dist.is_initialized():
                # No pair of one process is a pair of another.
                pair = pair + (dist.get_rank() << 40)
                return cmx_fast.distributed.supcon(views, pair, 1 / self.temperature, normalize=True)
            return supcon(views, pair, 1 / self.temperature, normalize=True)
        bank = self.memory_bank.rows.to(out0.dtype)
        loss = info_nce(
            out0, out1, 1 / self.temperature, bank=bank, in_batch=False, symmetric=False, normalize=True
        )
        if out0.requires_grad:
            keys = F.normalize(out1.detach(), dim=1)
            self.memory_bank.enqueue(cmx_fast.distributed.all_rows(keys) if self.gather_distributed else keys)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
