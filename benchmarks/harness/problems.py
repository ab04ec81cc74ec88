"""Makes the benchmarks' inputs: random unit vectors, in pairs of a chosen likeness or in clusters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers import formulas

TEMPERATURE = 0.07
# Cosine of a pair in the timed cases: its loss is that of a half-finished run.
PAIR_COSINE = 0.5


@dataclass(frozen=True)
class Problem:
    """Named tensors; those in ``leaves`` receive gradients."""

    tensors: Mapping[str, Tensor]
    leaves: tuple[str, ...]
    temperature: float = TEMPERATURE

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, dtype: torch.dtype, device: str | torch.device | None = None) -> Problem:
        """The same values in another dtype (the scale in float32 or better), as new leaves."""
        converted = {}
        for name, value in self.tensors.items():
            wanted = torch.promote_types(dtype, torch.float32) if value.dim() == 0 else dtype
            value = value.detach().to(device, wanted if value.is_floating_point() else value.dtype).clone()
            converted[name] = value.requires_grad_(name in self.leaves)
        return Problem(converted, self.leaves, self.temperature)

    def result(self, output: Tensor) -> Tensor:
        """The float64 vector that errors are measured of: the gradients of the features, or without any the output."""
        if not self.leaves:
            return output.flatten().double().cpu()
        grads = (self[name].grad for name in self.leaves if self[name].dim())
        return torch.cat([grad.flatten().double().cpu() for grad in grads if grad is not None])


def _pairs(n: int, d: int, cosine: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit rows (n, d) in float64 and others at this expected cosine to them."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = (
        F.normalize(torch.randn(n, d, dtype=torch.float64, generator=generator), dim=1) for _ in "xy"
    )
    return first, F.normalize(cosine * first + (1 - cosine**2) ** 0.5 * noise, dim=1)


@functools.lru_cache(4)
def clip_problem(
    n: int, d: int, loss: float | None = None, temperature: float = TEMPERATURE, seed: int = 0
) -> Problem:
    """Two sets (n, d) and a learned scale; with ``loss`` the pairs are as alike as that loss takes."""

    def at(cosine: float) -> Problem:
        query, key = _pairs(n, d, cosine, seed)
        scale = torch.tensor(1 / temperature, dtype=torch.float64)
        tensors = {"query": query, "key": key, "logit_scale": scale}
        return Problem(tensors, ("query", "key", "logit_scale"), temperature)

    return (
        at(PAIR_COSINE) if loss is None else _at_loss(at, lambda p: formulas.clip(*p.tensors.values()), loss)
    )


@functools.lru_cache(2)
def cluster_problem(n: int, d: int, clusters: int, side: int | None = None, seed: int = 0) -> Problem:
    """Unit rows (n, d) around 64 centres, or maps (n // side^2, d, side, side); some of them as centroids (K, d)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(64, d, dtype=torch.float64, generator=generator)
    rows = centres[torch.randint(64, (n,), generator=generator)]
    rows = F.normalize(rows + 0.7 * torch.randn(n, d, dtype=torch.float64, generator=generator), dim=1)
    centroids = rows[torch.randperm(n, generator=generator)[:clusters]].clone()
    target = torch.randint(clusters, (n,), generator=generator)
    if side is None:
        return Problem({"x": rows, "centroids": centroids}, ())
    # Features as a network leaves them: not of unit length, pixels next to each other.
    maps = 3 * rows.reshape(-1, side, side, d).movedim(-1, 1).contiguous()
    return Problem({"x": maps, "centroids": centroids, "target": target.reshape(-1, side, side)}, ("x",))


def views_problem(n: int, d: int, seed: int = 0) -> Problem:
    """Two views (n, d) of as many samples, both with gradients."""
    query, key = _pairs(n, d, PAIR_COSINE, seed)
    return Problem({"query": query, "key": key}, ("query", "key"))


def bank_problem(n: int, d: int, size: int, seed: int = 0) -> Problem:
    """Queries (n, d), their keys from a momentum encoder (no gradient) and a bank (size, d)."""
    query, key = _pairs(n, d, PAIR_COSINE, seed)
    return Problem({"query": query, "key": key, "bank": _pairs(size, d, 0, seed + 1)[0]}, ("query",))


@functools.lru_cache(4)
def supcon_problem(n: int, d: int, loss: float | None = None, seed: int = 0) -> Problem:
    """Rows (n, d) in 100 random classes; with ``loss`` in pairs as alike as that loss takes."""

    def at(cosine: float) -> Problem:
        features = torch.cat(_pairs(n // 2, d, cosine, seed))
        return Problem({"features": features, "labels": torch.arange(n // 2).repeat(2)}, ("features",))

    if loss is not None:
        return _at_loss(at, lambda p: formulas.supcon(p["features"], p["labels"], p.temperature), loss)
    labels = torch.randint(100, (n,), generator=torch.Generator().manual_seed(seed))
    centre = _pairs(100, d, 0, seed + 1)[0]
    features = F.normalize(PAIR_COSINE * centre[labels] + _pairs(n, d, 0, seed)[0], dim=1)
    return Problem({"features": features, "labels": labels}, ("features",))


def _at_loss(at: Callable[[float], Problem], loss_of: Callable[[Problem], Tensor], loss: float) -> Problem:
    """Bisect for the cosine of the pairs at which the loss is about this (it falls as they come closer)."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        if loss_of(at(middle).to(torch.float32)).item() > loss:
            low = middle
        else:
            high = middle
    return at((low + high) / 2)
