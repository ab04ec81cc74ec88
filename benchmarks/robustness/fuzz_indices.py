"""Tries operators whose answers are indices, on data of all magnitudes, with duplicates, NaN and infinities."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.cluster import KMeans, MiniBatchKMeans
from cmx_fast.ops import cluster_cross_entropy, kmeans_assign, kmeans_step

from .fuzz_operators import DTYPES, Wrong

SIZES = (1, 2, 3, 5, 8, 17, 31, 33, 70, 130)
#: Powers of ten of the least and the largest number; in float64 those whose squares it holds, for the truth's sake.
REACH = {torch.float32: 38, torch.bfloat16: 38, torch.float16: 4, torch.float64: 140}


def _rows(rng: random.Random, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of a few magnitudes, some equal to others, some 0."""
    reach = REACH[dtype]
    magnitudes = [rng.randint(-reach, reach) for _ in range(rng.randint(1, 3))]
    tens = torch.tensor(rng.choices(magnitudes, k=count), dtype=torch.float64)[:, None]
    x = torch.randn(count, width, dtype=torch.float64).clamp(-3, 3) * 10**tens
    if rng.random() < 0.5:
        x = x[torch.randint(count, (count,))]
    if rng.random() < 0.2:
        x[rng.randrange(count)] = 0
    ends = torch.finfo(dtype)
    return x.clamp(ends.min, ends.max).to(dtype)


def _require(right: bool, message: str) -> None:
    if not right:
        raise Wrong(message)


def _distances(x: Tensor, centroids: Tensor, metric: str, normalize: bool) -> Tensor:
    rows, centers = x.double(), centroids.double()
    if metric == "cosine":
        rows, centers = reference.unit_rows(rows, 0.0), reference.unit_rows(centers, 0.0)
    elif normalize:
        rows = reference.unit_rows(rows, 1e-12)
    squares = (rows[:, None] - centers).square().sum(2)
    return squares / 2 if metric == "cosine" else squares


def clusters(seed: int) -> None:
    """Check labels, sums and the loss of rows and centroids, and an estimator on the rows."""
    rng = random.Random(seed)
    dtype = rng.choice(DTYPES)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    n, k, d = (rng.choice(SIZES) for _ in range(3))
    x, centroids = _rows(rng, n, d, dtype), _rows(rng, k, d, wide)
    if rng.random() < 0.3:
        copies = torch.randint(k, (n,))
        x = torch.where(torch.rand(n, 1) < 0.5, centroids[copies].to(dtype), x)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        x[rng.randrange(n), rng.randrange(d)] = rng.choice([float("nan"), float("inf"), -float("inf")])
    metric, normalize = rng.choice([("l2", False), ("l2", True), ("cosine", False)])
    given = x
    if rng.random() < 0.3:
        given = x.T.reshape(1, d, 1, n)  # maps
    labels, distance = kmeans_assign(given, centroids, metric=metric, normalize=normalize)
    again, _, counts, _ = kmeans_step(given, centroids, metric=metric, normalize=normalize)
    labels, distance, arguments = (
        labels.flatten(),
        distance.flatten().double(),
        f"{(n, k, d, dtype, metric, normalize)}",
    )
    _require(bool(((labels >= 0) & (labels < k)).all()), f"{arguments}: labels {labels.tolist()} of {k}")
    _require(labels.equal(again.flatten()), f"{arguments}: the step has other labels than the assignment")
    _require(
        counts.tolist() == torch.bincount(labels, minlength=k).tolist(),
        f"{arguments}: counts {counts.tolist()}",
    )
    finite, truth = x.isfinite().all(1), _distances(x, centroids, metric, normalize)
    _require(
        bool(labels[~finite].eq(0).all()),
        f"{arguments}: rows that are not finite go to {labels[~finite].tolist()}",
    )
    _require(
        bool((~distance[~finite].isfinite()).all()),
        f"{arguments}: and have distances {distance[~finite].tolist()}",
    )
    chosen, least = truth[torch.arange(n), labels][finite], truth.amin(1)[finite]
    unit = metric == "cosine" or normalize
    rounding = 2e-6 if wide == torch.float32 else 1e-12
    slack = rounding * least + (rounding * least.sqrt() + rounding**2 if unit else 0)
    _require(
        bool((chosen <= least + slack).all()),
        f"{arguments}: {chosen.tolist()} against {least.tolist()}",
    )
    slack += rounding * chosen + torch.finfo(wide).tiny
    near = (distance[finite] - chosen).abs() <= slack
    _require(
        bool((near | (chosen > torch.finfo(wide).max)).all()), f"{arguments}: distances {distance.tolist()}"
    )
    if metric == "l2":
        leaf = x.clone().requires_grad_()
        loss, own = cluster_cross_entropy(leaf, centroids, normalize=normalize)
        loss.backward()
        _require(own.equal(labels), f"{arguments}: the loss has other labels than the assignment")
    estimator = rng.choice([KMeans, MiniBatchKMeans])
    k = k if rng.random() < 0.2 else min(k, n)
    fitted = estimator(k, max_iter=3, random_state=seed, metric=metric, normalize=normalize).fit(x)
    _require(
        bool(fitted.cluster_centers_.isfinite().all()), f"{arguments}: centres {fitted.cluster_centers_}"
    )
    _require(
        bool(((fitted.labels_ >= 0) & (fitted.labels_ < k)).all()), f"{arguments}: labels {fitted.labels_}"
    )


#: Tries by name, as functions of a seed; they raise the refusal, or Wrong.
INDICES: dict[str, Callable[[int], None]] = {"clusters": clusters}
