"""The base of both estimators: parameters, checks, prediction, and results in the caller's kind of array."""

from __future__ import annotations

import inspect
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from cmx_fast.cluster._conventions import (
    Base,
    NotFittedError,
    check_column_names,
    check_flag,
    check_integer,
    check_number,
)
from cmx_fast.cluster._samples import BLOCK, Samples, to_tensor
from cmx_fast.cluster._sparse import SparseSamples
from cmx_fast.ops.kmeans import METRICS

Array = Any  # a NumPy array or a tensor, as given


RandomState = int | np.random.RandomState | torch.Generator | None


def generator_of(random_state: RandomState) -> torch.Generator:
    """A new generator on the CPU: the global seed is neither read nor moved."""
    if isinstance(random_state, torch.Generator):
        return random_state
    if random_state is None:
        generator = torch.Generator()
        generator.seed()
        return generator
    if isinstance(random_state, np.random.RandomState):
        random_state = int(random_state.randint(2**31 - 1))
    if not isinstance(random_state, numbers.Integral):
        raise TypeError(f"random_state must be an integer, a generator or None, got {random_state!r}")
    return torch.Generator().manual_seed(int(random_state))


class Estimator(Base):
    """Parameters and prediction by scikit-learn's conventions, for its tools but without needing it."""

    n_clusters: int
    init: Any
    n_init: int | str
    max_iter: int
    tol: float
    verbose: int
    metric: str
    normalize: bool
    cluster_centers_: Array
    n_features_in_: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments with their present values."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor by name."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for {type(self).__name__}; valid are {sorted(known)}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names of :meth:`transform`'s columns: the class's with a number, whatever ``input_features`` is."""
        self._check_fitted("get_feature_names_out")
        name = type(self).__name__.lower()
        return np.array([f"{name}{cluster}" for cluster in range(len(self.cluster_centers_))], dtype=object)

    def predict(self, X: Array) -> Array:
        """The nearest cluster of each sample: int64 (N,), or (B, H, W) for maps."""
        samples = self._samples_like_fitted("predict", X)
        return samples.give(samples.shaped(samples.assign(self._centroids(samples))[0]))

    def fit_predict(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Array:
        """Call ``fit``; returns the labels of the fitted samples."""
        return self.fit(X, sample_weight=sample_weight).labels_  # type: ignore[attr-defined]

    def transform(self, X: Array) -> Array:
        """Distances (N, K) to every centroid: Euclidean, or 1 - cosine. No other method holds N x K numbers."""
        samples = self._samples_like_fitted("transform", X)
        centroids = self._centroids(samples)
        centroids = torch.nn.functional.normalize(centroids, dim=1) if self.metric == "cosine" else centroids

        def distances(rows: Tensor) -> Tensor:
            if self.metric == "cosine":
                return 1 - rows @ centroids.T
            return torch.cdist(rows, centroids, compute_mode="donot_use_mm_for_euclid_dist")

        blocks = torch.arange(samples.n).split(max(1, BLOCK // samples.d))
        distance = torch.cat([distances(samples.take(indices)) for indices in blocks])
        return samples.give(distance if samples.is_tensor else distance.to(samples.dtype))

    def fit_transform(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Array:
        """Call ``fit``; returns :meth:`transform` of the same samples."""
        return self.fit(X, sample_weight=sample_weight).transform(X)  # type: ignore[attr-defined]

    def score(self, X: Array, y: None = None, sample_weight: Array | None = None) -> float:
        """Minus the inertia: the sum of the samples' weighted distances, squared with "l2", to their centroids."""
        samples = self._samples_like_fitted("score", X, sample_weight)
        return -samples.labels_and_inertia(self._centroids(samples))[1]

    def _check_options(self) -> None:
        for name in ("n_clusters", "max_iter"):
            check_integer(name, getattr(self, name), least=1)
        if self.n_init != "auto":
            check_integer("n_init", self.n_init, least=1, other="'auto' or ")
        check_number("tol", self.tol)
        if not isinstance(self.verbose, bool):
            check_integer("verbose", self.verbose, least=0)
        check_flag("normalize", self.normalize)
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(map(repr, METRICS))}; got {self.metric!r}")

    def _starts(self, several: int) -> int:
        """The number of starts to try: with "auto" several of those that vary much, else as many as asked for."""
        varies = callable(self.init) or (isinstance(self.init, str) and self.init == "random")
        if isinstance(self.n_init, str):
            return several if varies else 1
        if callable(self.init) or isinstance(self.init, str) or self.n_init == 1:
            return self.n_init
        warnings.warn(
            f"Explicit initial center position passed: performing only one init in {type(self).__name__} instead of "
            f"n_init={self.n_init}.",
            RuntimeWarning,
            stacklevel=4,
        )
        return 1

    def _samples(self, X: Array, weight: Array | None = None) -> Samples:
        kind = SparseSamples if hasattr(X, "tocsr") else Samples
        return kind(X, weight, metric=self.metric, normalize=bool(self.normalize))

    def _check_fitted(self, method: str) -> None:
        if not hasattr(self, "cluster_centers_"):
            raise NotFittedError(f"{type(self).__name__} is not fitted yet; call fit before {method}")

    def _keep_names(self, samples: Samples) -> None:
        """Set ``feature_names_in_`` from a data frame's columns; remove it for anything else."""
        self.__dict__.pop("feature_names_in_", None)
        if samples.names is not None:
            self.feature_names_in_ = samples.names

    def _samples_like_fitted(self, method: str, X: Array, weight: Array | None = None) -> Samples:
        self._check_fitted(method)
        samples = self._samples(X, weight)
        check_column_names(self, samples.names)
        self._check_width(samples, self.n_features_in_)
        return samples

    def _check_width(self, samples: Samples, expected: int) -> None:
        if samples.d != expected:
            raise ValueError(
                f"X has {samples.d} features, but {type(self).__name__} is expecting {expected} features as input"
            )

    def _centroids(self, samples: Samples) -> Tensor:
        return to_tensor("cluster_centers_", self.cluster_centers_).to(samples.device, samples.wide)


def means(sums: Tensor, counts: Tensor, before: Tensor, metric: str) -> Tensor:
    """The next centroids: the clusters' means, unit vectors with "cosine"; a cluster without weight stays."""
    new = sums.double() / torch.where(counts > 0, counts, 1)[:, None]
    new = torch.nn.functional.normalize(new, dim=1) if metric == "cosine" else new
    return torch.where((counts > 0)[:, None], new.to(before.dtype), before)


def mean_variance(samples: Samples) -> float:
    """The mean variance of the features, weighted: the inertia per weight and feature of a single cluster."""
    centre = samples.take(torch.zeros(1, dtype=torch.int64))
    _, sums, counts, _ = samples.step(centre)
    centre = means(sums, counts, centre, "l2")
    if samples.metric == "cosine":
        # The variance of unit rows: E|x|^2 - |E x|^2.
        return max(0.0, 1 - centre.double().square().sum().item()) / samples.d
    return samples.step(centre)[3].item() / counts.item() / samples.d
