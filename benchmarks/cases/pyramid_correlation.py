"""Pyramid correlation filtering with its consistency loss: the formula as users write it, and ours."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from cmx_fast.ops import attention_consistency, pyramid_correlation
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula
from ..peers import formulas


@functools.lru_cache(2)
def problem(task: str, n: int, d: int, size: tuple[int, ...], seed: int = 0) -> Problem:
    """Features (n, d, *size) and filters (n, d); a predicted map where the task has one, else a gradient of the map."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    tensors = {"features": draw(n, d, *size), "filters": draw(n, d), "other": draw(n, *size)}
    return Problem(tensors, ("features", "filters") if task == "correlation" else ("other",))


def _arguments(p: Problem) -> tuple:
    return p["features"], p["filters"], p["other"]


def _pulled(features: Tensor, filters: Tensor, pull: Tensor) -> Tensor:
    return (formulas.pyramid_correlation(features, filters) * pull).sum()


def _consistency(features: Tensor, filters: Tensor, logits: Tensor) -> Tensor:
    target = formulas.pyramid_correlation(features, filters).detach()
    return (target - logits.sigmoid()).square().flatten(1).sum(1).mean()


def _our_pulled(p: Problem, impl: str = "auto") -> Tensor:
    features, filters, pull = _arguments(p)
    return (pyramid_correlation(features, filters, impl=impl) * pull).sum()


def _our_consistency(p: Problem, impl: str = "auto") -> Tensor:
    features, filters, logits = _arguments(p)
    loss = attention_consistency(features, filters, logits.sigmoid(), impl=impl)
    assert isinstance(loss, Tensor)
    return loss


def elements(n: int, d: int, size: tuple[int, ...]) -> int:
    """The number of the features' elements."""
    return n * d * math.prod(size)


IN_CUDA = f"{OURS} in CUDA C++"
# Beside Triton's, where there is a GPU to run it.
ON_DEVICE = (
    (OURS, IN_CUDA) if "pyramid_correlation" in COMPILED_FOR_CUDA and torch.cuda.is_available() else (OURS,)
)
PROVIDERS: dict[str, dict[str, Provider]] = {
    "correlation": {
        "eager formula": formula(lambda p: _pulled(*_arguments(p))),
        "torch.compile of it": compiled(_pulled, _arguments),
        OURS: Provider(lambda p: lambda: _our_pulled(p), lambda p: _pulled(*_arguments(p))),
        IN_CUDA: Provider(lambda p: lambda: _our_pulled(p, "cuda"), lambda p: _pulled(*_arguments(p))),
    },
    "consistency": {
        "eager formula": formula(lambda p: _consistency(*_arguments(p))),
        "torch.compile of it": compiled(_consistency, _arguments),
        OURS: Provider(lambda p: lambda: _our_consistency(p), lambda p: _consistency(*_arguments(p))),
        IN_CUDA: Provider(
            lambda p: lambda: _our_consistency(p, "cuda"), lambda p: _consistency(*_arguments(p))
        ),
    },
}
