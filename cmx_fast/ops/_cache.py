"""Budget of the memory that a forward pass may keep so that its backward pass need not multiply again."""

from __future__ import annotations

from torch import Tensor

_budget = 256 * 2**20
_WORTHWHILE_FEATURES = 512  # ours, measured with 2 threads on AVX-512 and AMX


def cache_budget() -> int:
    """Bytes that one operator call may keep for its backward pass (default 256 MiB: ours)."""
    return _budget


def set_cache_budget(size: int) -> None:
    """Set the bytes that one call of an operator may keep for its backward pass; 0 never keeps anything.

    With N x M similarities within the budget and at least 512 features per row the backward pass reads them back
    instead of computing them again: three N x M x D products for forward and backward instead of four. Narrower rows
    are multiplied again sooner than fresh memory is written and read. Kept on the CPU only and in float32 (float64 for
    float64 inputs): exp(s - shift) is redone, which is cheap and stays finite at any scale.

    Dense scores keep, on any device, where each maximum was, one to four bytes each, since finding it again costs the
    whole forward product.
    """
    global _budget
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"size must be a number of bytes >= 0, got {size!r}")
    _budget = size


def fits(size: int) -> bool:
    """True if this many bytes may be kept."""
    return size <= _budget


def worth_keeping(products: int, *inputs: Tensor) -> bool:
    """True if ``products`` similarities fit the budget, cost more to compute again, and a gradient will ask for them.

    Args:
        products: number of similarities. inputs: the tensors that they are made of.
    """
    width = 8 if inputs[0].element_size() == 8 else 4
    return (
        inputs[0].device.type == "cpu"
        and inputs[0].shape[-1] >= _WORTHWHILE_FEATURES
        and products * width <= _budget
        and any(tensor.requires_grad for tensor in inputs)
    )
