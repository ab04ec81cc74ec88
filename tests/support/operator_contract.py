"""Measures of every operator's tests: gradients of several implementations, and the contract's error rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rounding of the reported gradient itself, below which nobody's error says anything.
FLOOR = {torch.float32: 6e-8, torch.bfloat16: 2e-3, torch.float16: 3e-4, torch.float64: 2e-13}


def run(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Losses, and gradients of every floating input, for an upstream gradient that differs by row."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    weight = torch.linspace(1, 2, max(value.numel(), 1), dtype=value.dtype)[: value.numel()]
    (value.reshape(-1) * weight).sum().backward()
    return value.detach(), *(leaf.grad for leaf in leaves)


def vector_error(actual: Tensor, truth: Tensor) -> float:
    """Relative L2 distance; absolute where the truth vanishes."""
    truth = truth.double()
    distance = (actual.double() - truth).norm().item()
    size = truth.norm().item()
    return distance / size if size > 1e-12 else distance


def assert_as_exact_as_eager(loss: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Require errors against float64 of at most 1.5 times eager's own, for the losses and every gradient.

    ``loss(*inputs, impl)`` runs one implementation. The truth is float64's on the inputs as ``dtype`` rounds them.
    """
    rounded = [x.to(dtype) if x.dim() else x for x in inputs]
    truth = run(lambda *x: loss(*x, "reference"), *(x.double() for x in rounded))
    eager = run(lambda *x: loss(*x, "reference"), *rounded)
    actual = run(lambda *x: loss(*x, "cpp"), *rounded)
    for index, (f, e, t) in enumerate(zip(actual, eager, truth)):
        assert f.dtype == (rounded[index - 1].dtype if index else torch.promote_types(dtype, torch.float32))
        # No result can be nearer than its own rounding.
        limit = 1.5 * max(vector_error(e, t), FLOOR[f.dtype])
        worst = (f.double() - t).abs().argmax().item() if f.numel() else None
        assert vector_error(f, t) <= limit, (
            f"output {index} of {dtype}: error {vector_error(f, t):.2e}, limit {limit:.2e}, worst at flat index {worst}"
        )
