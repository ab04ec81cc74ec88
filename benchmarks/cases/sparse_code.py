"""The sparse code: the unrolled loop as users write it, and ours."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.ops import sparse_code

from ..harness.problems import Problem
from ..harness.provider import OURS, Provider, compiled, formula
from ..peers import formulas

STEPS, PENALTY = 10, 0.1


@functools.lru_cache(2)
def problem(n: int, d: int, atoms: int, seed: int = 0) -> Problem:
    """Vectors (n, d) and a dictionary (d, k) of unit columns, with the step size that they take."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    dictionary = F.normalize(torch.randn(d, atoms, dtype=torch.float64, generator=generator), dim=0)
    size = 1 / torch.linalg.matrix_norm(dictionary, 2) ** 2
    return Problem({"x": x, "dictionary": dictionary, "step_size": size}, ("x", "dictionary"))


def _arguments(p: Problem) -> tuple:
    return p["x"], p["dictionary"], p["step_size"], PENALTY, STEPS


def _objective(codes: Tensor) -> Tensor:
    """A loss of the codes whose gradient differs from place to place."""
    return codes.square().sum()


def _loop(*arguments) -> Tensor:
    return _objective(formulas.unrolled_ista(*arguments))


def _ours(p: Problem) -> Tensor:
    return _objective(sparse_code(p["x"], p["dictionary"], steps=STEPS, lam=PENALTY))


PROVIDERS: dict[str, dict[str, Provider]] = {
    "codes": {
        "unrolled loop": formula(lambda p: _loop(*_arguments(p))),
        "torch.compile of it": compiled(_loop, _arguments),
        OURS: Provider(lambda p: lambda: _ours(p), lambda p: _loop(*_arguments(p))),
    }
}
