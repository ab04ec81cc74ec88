"""K-means by Lloyd's algorithm, with scikit-learn's names and meaning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from cmx_fast._extras import require
from cmx_fast.cluster._conventions import ConvergenceWarning, check_flag
from cmx_fast.cluster._estimator import Array, Estimator, RandomState, generator_of, mean_variance, means
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster._sparse import SparseSamples
from cmx_fast.cluster.seeding import Init, start

ALGORITHMS = ("lloyd", "elkan")
BACKENDS = ("cmx", "faiss")

logger = logging.getLogger("cmx_fast")


class EmptyClusterWarning(UserWarning):
    """Clusters lost all their samples and were moved to others."""


@dataclass
class Run:
    """The result of one run of Lloyd's algorithm."""

    centroids: Tensor
    labels: Tensor
    counts: Tensor
    inertia: float
    iterations: int
    moved: int


class KMeans(Estimator):
    """Lloyd's algorithm; every iteration reads the data once (:func:`cmx_fast.ops.kmeans_step`).

    Takes NumPy arrays, data frames or tensors on any device and gives arrays or tensors back. SciPy's sparse matrices
    are made dense a block at a time: 64 or 128 MB beside them, at the cost of dense ones. Beyond scikit-learn's class
    there are ``metric``, ``normalize``, ``backend`` and maps as input. Where scikit-learn is installed, its errors and
    warnings are raised, and ``set_output`` and ``set_fit_request`` are there.

    Args:
        n_clusters: K.
        init: "k-means++", "random", an array (K, D), or a callable ``init(X, n_clusters, random_state)``, which gets X
            as it was given with NumPy's ``RandomState``, or for a tensor a ``torch.Generator``.
        n_init: runs from different starts, of which the best by inertia is kept; "auto": 10 for "random" and callables,
            else 1.
        max_iter: most iterations of a run.
        tol: stop where the centroids' squared shift falls below this times the mean weighted variance of the features.
        verbose: print the inertia of every iteration.
        random_state: seed, NumPy's ``RandomState`` or a CPU ``torch.Generator``; None: another result every time. The
            global seed is not touched.
        copy_x: without effect: X is never written to.
        algorithm: "lloyd", or "elkan". Elkan's bounds lead to the same result, so Lloyd's iterations run for both; the
            log of "cmx_fast" says so.
        metric: "l2", or "cosine" for spherical k-means: unit rows, centroids that are unit vectors.
        normalize: with "l2", cluster unit rows around plain means.
        backend: "cmx", or "faiss" for its iterations from the same starts: vectors with "l2", on the CPU in float32,
            ``max_iter`` iterations whatever ``tol`` is, empty clusters split from large ones.

    Attributes:
        cluster_centers_: (K, D) float32, or float64 for float64 data.
        labels_: int64 (N,) or (B, H, W). counts_: (K,) numbers of samples, float64 sums of weights with weights.
        inertia_: sum of the samples' weighted distances (squared with "l2").
        n_iter_, n_features_in_: iterations of the best run, and D. feature_names_in_: columns of a data frame.
        n_relocated_: times in the best run that an empty cluster was moved to the sample farthest from its centroid.

    Example:
        >>> import torch
        >>> from cmx_fast.cluster import KMeans
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
        >>> KMeans(2, random_state=0).fit(x).inertia_
        1.0
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Init = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: RandomState = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        metric: str = "l2",
        normalize: bool = False,
        backend: str = "cmx",
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.metric = metric
        self.normalize = normalize
        self.backend = backend

    def fit(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Self:
        """Cluster X, (N, D) or (B, D, H, W); ``sample_weight`` (N,) or (B, H, W).

        Raises:
            TypeError, ValueError: a wrong option, shape or value, or fewer samples than clusters; before any work.
            MissingExtraError: ``backend="faiss"`` without faiss.
        """
        self._check_options()
        samples = self._samples(X, sample_weight)
        if samples.n < self.n_clusters:
            raise ValueError(f"n_samples={samples.n} should be >= n_clusters={self.n_clusters}.")
        generator = generator_of(self.random_state)
        run = self._faiss_run(samples) if self.backend == "faiss" else self._run(samples)
        runs = (run(self._start(samples, generator)) for _ in range(self._starts(several=10)))
        best = min(runs, key=lambda run: run.inertia)
        if best.moved:
            warnings.warn(
                f"{best.moved} times a cluster fell empty and was moved to the sample farthest from its centroid",
                EmptyClusterWarning,
                stacklevel=2,
            )
        distinct = int((best.counts > 0).sum())
        if distinct < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({distinct}) found smaller than n_clusters ({self.n_clusters}). Possibly "
                "due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._keep_names(samples)
        self.cluster_centers_ = samples.give(best.centroids)
        self.labels_ = samples.give(samples.shaped(best.labels))
        self.counts_ = samples.give(best.counts if samples.weight is not None else best.counts.long())
        self.inertia_, self.n_iter_, self.n_relocated_ = best.inertia, best.iterations, best.moved
        self.n_features_in_ = samples.d
        return self

    def _check_options(self) -> None:
        super()._check_options()
        for name, known in (("backend", BACKENDS), ("algorithm", ALGORITHMS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}; got {getattr(self, name)!r}"
                )
        check_flag("copy_x", self.copy_x)
        if self.algorithm == "elkan" and self.n_clusters == 1:
            warnings.warn(
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead.",
                RuntimeWarning,
                stacklevel=3,
            )
        elif self.algorithm == "elkan":
            logger.info("algorithm='elkan': Lloyd's iterations run, which arrive at the same result")

    def _start(self, samples: Samples, generator: torch.Generator) -> Tensor:
        centroids = start(samples, self.n_clusters, self.init, generator)
        if self.verbose:
            print("Initialization complete")
        return torch.nn.functional.normalize(centroids, dim=1) if self.metric == "cosine" else centroids

    def _run(self, samples: Samples) -> Callable[[Tensor], Run]:
        """Run Lloyd's algorithm on these samples from one start."""
        tolerance = self.tol * mean_variance(samples) if self.tol else 0.0

        def run(centroids: Tensor) -> Run:
            labels, iterations, moved = None, 0, 0
            while iterations < self.max_iter:
                iterations += 1
                before, last = centroids, labels
                labels, sums, counts, inertia = samples.step(before)
                if self.verbose:
                    print(f"Iteration {iterations - 1}, inertia {inertia.item() * samples.scale}.")
                empty = (counts == 0).nonzero().flatten()
                if len(empty):
                    moved += _relocate(samples, before, labels, sums, counts, empty)
                centroids = means(sums, counts, before, self.metric)
                shift = (centroids - before).double().square().sum().item()
                settled = last is not None and labels.equal(last)
                if not settled and shift > tolerance:
                    continue
                if self.verbose:
                    how = (
                        "strict convergence"
                        if settled
                        else f"center shift {shift} within tolerance {tolerance}"
                    )
                    print(f"Converged at iteration {iterations - 1}: {how}.")
                break
            # The labels belong to the centroids before the last update, unless nothing changed.
            labels, _, counts, inertia = samples.step(centroids)
            return Run(
                centroids, labels, counts * samples.scale, inertia.item() * samples.scale, iterations, moved
            )

        return run

    def _faiss_run(self, samples: Samples) -> Callable[[Tensor], Run]:
        """Run faiss's iterations on these samples from one start."""
        faiss = require("faiss", "cpu")
        dense = not isinstance(samples, SparseSamples)
        if self.metric != "l2" or self.normalize or not dense or samples.x.dim() != 2:
            raise ValueError(
                "backend='faiss' clusters vectors (N, D), not sparse, with metric='l2' and normalize=False"
            )
        trainer = faiss.Kmeans(
            samples.d,
            self.n_clusters,
            niter=self.max_iter,
            min_points_per_centroid=1,
            max_points_per_centroid=2**31 - 1,
        )
        rows = np.ascontiguousarray(samples.x.float().cpu().numpy())
        weight = None if samples.weight is None else samples.weight.float().cpu().numpy()

        def run(first: Tensor) -> Run:
            given = np.ascontiguousarray(first.float().cpu().numpy())
            trainer.train(rows, weights=weight, init_centroids=given)
            centroids = torch.from_numpy(trainer.centroids).to(samples.device, samples.wide)
            labels, _, counts, inertia = samples.step(centroids)
            return Run(
                centroids, labels, counts * samples.scale, inertia.item() * samples.scale, self.max_iter, 0
            )

        return run


def _relocate(
    samples: Samples, centroids: Tensor, labels: Tensor, sums: Tensor, counts: Tensor, empty: Tensor
) -> int:
    """Give each empty cluster the sample farthest from its centroid, out of that sample's cluster; in place."""
    distance = samples.assign(centroids)[1] * (samples.flat_weight() > 0)
    farthest = distance.topk(min(len(empty), samples.n))
    usable = farthest.values > 0
    taken, target = farthest.indices[usable], empty[: len(farthest.indices)][usable]
    weight, owner = samples.flat_weight()[taken], labels[taken]
    rows = samples.take(taken).to(sums.dtype) * weight[:, None].to(sums.dtype)
    sums.index_add_(0, owner, -rows)
    counts.index_add_(0, owner, -weight)
    sums[target], counts[target] = rows, weight
    return len(taken)
