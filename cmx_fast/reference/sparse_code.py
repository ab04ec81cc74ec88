"""Non-negative sparse codes by unrolled ISTA in plain PyTorch: every step's codes and products in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def spectral_norm_squared(dictionary: Tensor) -> Tensor:
    """The largest eigenvalue of D^T D, 0-d, by squaring the Gram matrix eight times; nothing waits for a GPU.

    The column of G^256 with the largest diagonal entry lies in the leading eigenvectors' span, and its Rayleigh
    quotient misses their eigenvalue by the ratio to the next one to the power of 512.
    """
    gram = dictionary.T @ dictionary
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for _ in range(8):
        power = power / power.trace().clamp_min(tiny)
        power = power @ power
    vector = power.index_select(1, power.diagonal().argmax().reshape(1))
    return ((vector * (gram @ vector)).sum() / vector.square().sum().clamp_min(tiny)).clamp_min(tiny)


def sparse_code(
    x: Tensor,
    dictionary: Tensor,
    *,
    steps: int = 10,
    lam: float = 0.1,
    step_size: Tensor | float | None = None,
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.sparse_code`. Memory: with a gradient, the codes of every step."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, dictionary = x.to(dtype), dictionary.to(dtype)
    if step_size is None:
        step_size = 1 / spectral_norm_squared(dictionary.detach())
    codes = rows.new_zeros(*rows.shape[:-1], dictionary.shape[1])
    for _ in range(steps):
        residual = codes @ dictionary.T - rows
        codes = torch.relu(codes - step_size * (residual @ dictionary + lam))
    return codes.to(x.dtype)
