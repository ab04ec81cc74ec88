"""Attention in plain PyTorch: the scores of all queries and keys in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """The same function as :func:`cmx_fast.ops.attention`, in the inputs' dtype. Memory: the scores, (*, N, M)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(scale * (query @ key.transpose(-1, -2)), dim=-1)
    return weights @ value
