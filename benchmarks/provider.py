"""A contender: something that computes what a case asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .problems import Problem

OURS = "cmx_fast"
Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Provider:
    """One way to compute something.

    bind: makes the loss, or the result, of a problem a function without arguments; what a user does once belongs here.
    truth: the formula that this provider computes; the formula in float64 is the truth for its errors.
    dtype: what it takes instead of the case's dtype.
    package: the distribution that it comes from.
    """

    bind: Callable[[Problem], Loss]
    truth: Callable[[Problem], Tensor]
    compiled: bool = False
    dtype: torch.dtype | None = None
    package: str | None = None

    def step(self, problem: Problem) -> Callable[[], Tensor]:
        """Forward and, where the problem has leaves, backward with fresh gradients."""
        loss_of = self.bind(problem)
        leaves = [problem[name] for name in problem.leaves]

        def step() -> Tensor:
            for leaf in leaves:
                leaf.grad = None
            loss = loss_of()
            if leaves:
                loss.backward()
            return loss

        return step


def formula(function: Callable[[Problem], Tensor]) -> Provider:
    """A formula that is its own truth."""
    return Provider(lambda p: lambda: function(p), function)


def compiled(function: Callable[..., Tensor], arguments: Callable[[Problem], tuple]) -> Provider:
    """``torch.compile`` of a function of the problem's arguments, the best that it offers."""

    def bind(problem: Problem) -> Loss:
        torch.compiler.reset()  # one size at a time, so that no earlier one makes shapes dynamic
        fast, values = torch.compile(function, fullgraph=True, dynamic=False), arguments(problem)
        return lambda: fast(*values)

    return Provider(bind, lambda p: function(*arguments(p)), compiled=True)
