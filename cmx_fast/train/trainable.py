"""The interface between a system's networks and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

#: Tensors by name, mostly with samples along their first dimension: data, outputs of networks, and losses.
Batch = dict[str, Tensor]


class Trainable(Protocol):
    """An ``nn.Module`` that a stage can train; its docstring names the tensors of a batch.

    Where a stage has players that take turns, both methods take the player's name as their last argument.
    """

    @property
    def forward(self) -> Callable[..., Batch]:
        """``forward(batch)`` gives outputs."""

    @property
    def losses(self) -> Callable[..., Batch]:
        """``losses(outputs, batch)`` gives 0-d tensors: "loss" is minimised, all are logged."""
