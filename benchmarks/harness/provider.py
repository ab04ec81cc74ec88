"""A contender: one way to compute a case's result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import timing
from .problems import Problem

OURS = "cmx_fast"
Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Provider:
    """A way to compute a case's result.

    bind: makes the loss, or the result, of a problem a function without arguments; work that a user does once is here.
    truth: the formula that this provider computes; the formula in float64 is the truth for its errors.
    dtype: the dtype that it takes instead of the case's.
    package: the distribution that it comes from.
    captured: the step is captured as a CUDA graph once, and its replay is measured.
    """

    bind: Callable[[Problem], Loss]
    truth: Callable[[Problem], Tensor]
    compiled: bool = False
    dtype: torch.dtype | None = None
    package: str | None = None
    captured: bool = False

    def halves(self, problem: Problem) -> tuple[Loss, Callable[[Tensor], None]]:
        """Forward, and backward of its result with fresh gradients (nothing where the problem has no leaves)."""
        leaves = [problem[name] for name in problem.leaves]

        def backward(loss: Tensor) -> None:
            for leaf in leaves:
                leaf.grad = None
            if leaves:
                loss.backward()

        return self.bind(problem), backward

    def step(self, problem: Problem) -> Loss:
        """Forward and, where the problem has leaves, backward with fresh gradients."""
        return self.joined(*self.halves(problem))

    def joined(self, forward: Loss, backward: Callable[[Tensor], None]) -> Loss:
        """The step of both halves, as a CUDA graph if ``captured``."""

        def step() -> Tensor:
            loss = forward()
            backward(loss)
            return loss

        return timing.captured(step) if self.captured else step


def formula(function: Callable[[Problem], Tensor]) -> Provider:
    """A formula that is its own truth."""
    return Provider(lambda p: lambda: function(p), function)


def captured(provider: Provider) -> Provider:
    """The provider as a CUDA graph, whose step has no cost of the host's launches."""
    return replace(provider, captured=True)


def compiled(function: Callable[..., Tensor], arguments: Callable[[Problem], tuple]) -> Provider:
    """``torch.compile`` of a function of the problem's arguments, at its best."""

    def bind(problem: Problem) -> Loss:
        torch.compiler.reset()  # one size at a time, so that no earlier one makes shapes dynamic
        fast, values = torch.compile(function, fullgraph=True, dynamic=False), arguments(problem)
        return lambda: fast(*values)

    return Provider(bind, lambda p: function(*arguments(p)), compiled=True)
