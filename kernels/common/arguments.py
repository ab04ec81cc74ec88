"""Preparation of the launchers' arguments: device, autocast, dtype, layout."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def on_own_device(launcher: Callable[..., Result]) -> Callable[..., Result]:
    """Launch on the GPU of the first argument: Triton takes the current device, whatever its pointers belong to."""

    @functools.wraps(launcher)
    def guarded(first: Tensor, *args: object) -> Result:
        with torch.cuda.device_of(first):
            return launcher(first, *args)

    return guarded


def without_autocast(launcher: Callable[..., Result]) -> Callable[..., Result]:
    """Keep PyTorch's own products inside of a launcher in float32: autocast would round them there, too."""

    @functools.wraps(launcher)
    def guarded(first: Tensor, *args: object) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            return launcher(first, *args)

    return guarded


def check_dtype(x: Tensor) -> None:
    """Raise TypeError for a dtype that the matrix kernels have no tile for."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"the Triton kernels take float32, bfloat16 or float16, got {x.dtype}; use impl='reference'"
        )


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in row-major layout, each copied only if it is not row-major already; None stays None."""
    return tuple(None if x is None else x.contiguous() for x in tensors)


def candidate_counts(
    n: int, m: int, bank: Sequence[Tensor], in_batch: bool, within: bool
) -> tuple[float, float]:
    """Number of candidates of a query and of a key, each with its own positive."""
    common = 1 + sum(len(rows) for rows in bank)
    of_query = common + (m - 1 if in_batch else 0) + (n - 1 if within else 0)
    of_key = common + (n - 1 if in_batch else 0) + (m - 1 if within else 0)
    return float(of_query), float(of_key)
