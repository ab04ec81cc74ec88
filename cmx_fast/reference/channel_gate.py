"""A gate per channel in plain PyTorch: every step a pass over the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_gate(
    x: Tensor,
    hidden_weight: Tensor,
    gate_weight: Tensor,
    hidden_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    *,
    maximum: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.channel_gate`; pooling and products with the gate in x's dtype."""
    flat = x.flatten(2)
    pools = [flat.mean(2), flat.max(2).values] if maximum else [flat.mean(2)]
    logits = [
        F.linear(
            F.relu(F.linear(pool.to(hidden_weight.dtype), hidden_weight, hidden_bias)), gate_weight, gate_bias
        )
        for pool in pools
    ]
    gate = torch.sigmoid(torch.stack(logits).sum(0)).to(x.dtype)
    gated = x * gate.reshape(*gate.shape, *[1] * (x.dim() - 2))
    return gated if residual is None else F.relu(gated + residual)
