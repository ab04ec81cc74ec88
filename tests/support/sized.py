"""Calls whose sizes can be chosen: the rows of the tables in ``sized_calls`` and ``sized_layers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Sized(NamedTuple):
    """``build()`` makes the module, ``inputs(batch, extent)`` what it is called with.

    Attributes:
        names: the public names that it stands for.
        leaves: the first of the inputs that have a gradient.
    """

    names: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Any, ...]]
    leaves: int = 1


class Function(nn.Module):
    """A function as a module, which torch.export takes."""

    def __init__(self, function: Callable[..., Any], **buffers: Tensor):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs, **dict(self.named_buffers()))


def settled(module: nn.Module) -> nn.Module:
    """In evaluation, with weights that no initial zero hides behind."""
    for value in module.parameters():
        value.data.copy_(0.2 * torch.randn_like(value))
    return module.eval()


def of(function: Callable[..., Any], **buffers: Tensor) -> Callable[[], nn.Module]:
    return lambda: Function(function, **buffers)


def layer(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: settled(make())


def maps(*channels: int, more: int = 0) -> Callable[[int, int], tuple[Tensor, ...]]:
    """One map (B, C, extent + more, extent) per number of channels."""
    return lambda batch, extent: tuple(torch.randn(batch, c, extent + more, extent) for c in channels)


def rows(batch: int, extent: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 24), torch.randn(batch, 24)
