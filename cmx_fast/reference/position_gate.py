"""Pooling over channels and a gate per position in plain PyTorch: every step a pass over the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_channels(x: Tensor) -> Tensor:
    """The same function as :func:`cmx_fast.ops.pool_channels`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    highest = x.max(1, keepdim=True).values
    return torch.cat([highest.to(wide), x.mean(1, keepdim=True, dtype=wide)], 1)


def position_gate(x: Tensor, gate: Tensor, *, residual: Tensor | None = None) -> Tensor:
    """The same function as :func:`cmx_fast.ops.position_gate`; products in x's dtype."""
    gated = x * gate.to(x.dtype)
    return gated if residual is None else F.relu(gated + residual)
