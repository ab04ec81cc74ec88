"""Starts centroids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast.cluster._samples import Samples, to_tensor

Init = str | Callable[..., Any] | Any
INITS = ("k-means++", "random")


def start(samples: Samples, n_clusters: int, init: Init, generator: torch.Generator) -> Tensor:
    """Starting centroids (K, D) by "k-means++" or "random", from an array, or from a callable as in scikit-learn.

    Raises:
        ValueError: the name is unknown, or the array has another shape or values that are not finite.
    """
    if isinstance(init, str):
        if init not in INITS:
            raise ValueError(
                f"init must be one of {', '.join(map(repr, INITS))}, an array or a callable; got {init!r}"
            )
        if init == "random":
            return samples.take(choice(samples.flat_weight(), n_clusters, generator))
        return plus_plus(samples, n_clusters, generator)
    if callable(init):
        state: Any = generator
        if not samples.is_tensor:
            seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
            state = np.random.RandomState(seed)  # such callables are written for it
        init = init(samples.whole(), n_clusters, random_state=state)
        # Rows of sparse samples.
        init = init.toarray() if hasattr(init, "toarray") else init
    centroids = to_tensor("init", init).to(samples.device, samples.wide).clone()
    shape = f"The shape of the initial centers {tuple(centroids.shape)} does not match"
    if centroids.dim() != 2 or len(centroids) != n_clusters:
        raise ValueError(f"{shape} the number of clusters {n_clusters}")
    if centroids.shape[1] != samples.d:
        raise ValueError(f"{shape} the number of features of the data {samples.d}")
    if not centroids.isfinite().all():
        raise ValueError("init contains NaN or infinity")
    return centroids


def plus_plus(samples: Samples, n_clusters: int, generator: torch.Generator) -> Tensor:
    """Start centroids by greedy k-means++ (Arthur and Vassilvitskii 2007; candidates as in scikit-learn).

    A candidate for the next centroid is drawn with a probability proportional to its squared distance from those
    before; of 2 + log(K) candidates the one that lowers the total most is taken. Cost: as many reads of the data as
    candidates. Memory: one distance per sample.
    """
    weight = samples.flat_weight()
    chosen = samples.take(choice(weight, 1, generator))
    closest = samples.assign(chosen)[1]
    trials = 2 + int(math.log(n_clusters))
    for _ in range(1, n_clusters):
        potential = weight * closest
        # All points are centroids already: any will do, by weight.
        probability = potential if potential.sum() > 0 else weight
        drawn = draw(probability.cumsum(0), trials, generator)
        best: tuple[float, Tensor, Tensor] | None = None
        for index in drawn:
            candidate = samples.take(index.reshape(1))
            distance = torch.minimum(closest, samples.assign(candidate)[1])
            total = (weight * distance).sum().item()
            if best is None or total < best[0]:
                best = total, distance, candidate
        assert best is not None
        closest = best[1]
        chosen = torch.cat([chosen, best[2]])
    return chosen


def draw(sums: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw indices with replacement from the running sums of their weights; a sample of weight 0 never comes."""
    places = torch.rand(count, generator=generator, dtype=torch.float64).to(sums.device) * sums[-1]
    return torch.searchsorted(sums, places, right=True).clamp_max(len(sums) - 1)


def choice(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw different indices by weight; where too few have any, one of these comes again and again."""
    # The winners of exponential races are a sample without replacement with these probabilities.
    uniform = 1 - torch.rand(len(weight), generator=generator, dtype=torch.float64).to(weight.device)
    keys = torch.where(weight > 0, uniform.log() / (weight / weight.max()), -torch.inf)
    indices = keys.topk(count).indices
    return torch.where(weight[indices] > 0, indices, indices[0])


def sketch(samples: Samples, size: int, generator: torch.Generator) -> Samples:
    """Draw at most ``size`` different samples that stand for all: sums over them, by their new weights, are unbiased.

    Priority sampling (Duffield, Lund and Thorup 2007): those with the largest w / u, u uniform in (0, 1], each with the
    weight max(w, the largest w / u that was left out). Heavy samples keep their weights and light ones stand for
    others; those of weight 0 come last. Samples without weights give ``size`` of them without weights.
    """
    if size >= samples.n:
        return samples
    weight = samples.flat_weight()
    uniform = 1 - torch.rand(samples.n, generator=generator, dtype=torch.float64).to(weight.device)
    best = (weight / uniform).topk(size + 1)
    drawn = samples.subset(best.indices[:size])
    if drawn.weight is None:
        return drawn
    drawn_weight = torch.where(drawn.weight > 0, drawn.flat_weight().clamp_min(best.values[size]), 0)
    peak = drawn_weight.max()
    return drawn.weighted((drawn_weight / peak).to(samples.wide), samples.scale * peak.item())
