"""Mini-batch k-means, with scikit-learn's names and meaning, and from a stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from cmx_fast.cluster._estimator import Array, Estimator, generator_of, mean_variance, means
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster.kmeans import EmptyClusterWarning
from cmx_fast.cluster.seeding import Init, start


class MiniBatchKMeans(Estimator):
    r"""K-means from random batches (Sculley 2010): each moves the centroids by its share of what they have seen.

    .. math:: \mu_k \leftarrow \frac{c_k \mu_k + S_k}{c_k + n_k}, \qquad c_k \leftarrow c_k + n_k

    Takes NumPy arrays or tensors on any device and gives the same kind back. Differences to scikit-learn's class:
    ``metric``, ``normalize``, maps as input, :meth:`fit_stream`, and no ``verbose``.

    Args:
        n_clusters: K.
        init, n_init: as in :class:`KMeans`, tried on ``init_size`` samples; "auto": 3 for "random" and callables,
            else 1.
        max_iter: passes over the data, in samples drawn.
        batch_size: samples per batch of ``fit``.
        compute_labels: assign the whole data at the end of ``fit``.
        random_state: seed, or a ``torch.Generator``; None: another result every time.
        tol: stop where the averaged squared shift of the centroids falls below this times the mean variance; 0: don't.
        max_no_improvement: stop after so many batches without a lower averaged inertia; None: don't.
        init_size: samples that starts are tried on; None: 3 batches, or 3 K where that is more.
        reassignment_ratio: clusters that have seen less than this share of the largest one's samples are moved to
            random samples now and then.
        metric, normalize: as in :class:`KMeans`.

    Attributes:
        cluster_centers_, n_features_in_: as in :class:`KMeans`.
        labels_, inertia_: of the last ``fit`` data or ``partial_fit`` batch.
        counts_: (K,) float64 samples, or weights, that each cluster has seen.
        n_steps_, n_iter_: batches so far, and passes over the data that they make.
        n_reassigned_: how often a cluster was moved to a random sample.

    Example:
        >>> import torch
        >>> from cmx_fast.cluster import MiniBatchKMeans
        >>> clusters = MiniBatchKMeans(2, random_state=0)
        >>> for _ in range(3):
        ...     clusters = clusters.partial_fit(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
        >>> clusters.predict(torch.tensor([[0.0], [1.0]])).unique().numel()
        1
    """

    n_steps_: int
    n_reassigned_: int
    _centers: Tensor
    _seen: Tensor
    _generator: torch.Generator
    _since_reassignment: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Init = "k-means++",
        max_iter: int = 100,
        batch_size: int = 1024,
        compute_labels: bool = True,
        random_state: int | torch.Generator | None = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        init_size: int | None = None,
        n_init: int | str = "auto",
        reassignment_ratio: float = 0.01,
        metric: str = "l2",
        normalize: bool = False,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio
        self.metric = metric
        self.normalize = normalize

    def fit(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Self:
        """Cluster X from random batches of it.

        Raises:
            TypeError, ValueError: a wrong option, shape or value, or fewer samples than clusters; before any work.
        """
        samples = self._checked(X, sample_weight)
        if samples.n < self.n_clusters:
            raise ValueError(f"n_samples={samples.n} should be >= n_clusters={self.n_clusters}.")
        generator = generator_of(self.random_state)
        self._begin(self._best_start(samples, generator), samples.d, generator)
        batch = min(self.batch_size, samples.n)
        tolerance = self.tol * mean_variance(samples) if self.tol else 0.0
        progress = _Progress(batch, samples.n, tolerance, self.max_no_improvement)
        steps = self.max_iter * samples.n // batch
        for _ in range(steps):
            indices = torch.randint(samples.n, (batch,), generator=generator)
            inertia, shift = self._step(samples.subset(indices))
            if progress.finished(inertia, shift):
                break
        self.n_iter_ = -(-self.n_steps_ * batch // samples.n)
        self._publish(X)
        self._warn()
        if self.compute_labels:
            labels, distance = samples.assign(self._centers)
            self.labels_ = self._give(samples.shaped(labels), X)
            self.inertia_ = (distance.double() * samples.flat_weight().double()).sum().item()
        return self

    def partial_fit(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Self:
        """Move the centroids by one batch; the first one also starts them. A batch that is refused changes nothing.

        Raises:
            TypeError, ValueError: as :meth:`fit`; also another number of features than before.
        """
        samples = self._checked(X, sample_weight)
        if hasattr(self, "_centers"):
            self._samples_like_fitted("partial_fit", X)
            self._centers = self._centers.to(samples.x.device)
            self._seen = self._seen.to(samples.x.device)
        else:
            if samples.n < self.n_clusters:
                raise ValueError(f"n_samples={samples.n} should be >= n_clusters={self.n_clusters}.")
            generator = generator_of(self.random_state)
            self._begin(start(samples, self.n_clusters, self.init, generator), samples.d, generator)
        self._step(samples)
        self.n_iter_ = self.n_steps_
        self._publish(X)
        if self.compute_labels:
            labels, distance = samples.assign(self._centers)
            self.labels_ = self._give(samples.shaped(labels), X)
            self.inertia_ = (distance.double() * samples.flat_weight().double()).sum().item()
        return self

    def fit_stream(self, batches: Iterable[Array]) -> Self:
        """:meth:`partial_fit` on every batch of an iterator, from a new start; never more than one is held.

        A batch that is refused is left out, counted and named in one warning at the end.

        Raises:
            ValueError: no batch could be used; then the reason of the first refusal.
        """
        for name in ("_centers", "cluster_centers_"):
            self.__dict__.pop(name, None)
        refused: list[tuple[int, str]] = []
        for number, batch in enumerate(batches):
            try:
                self.partial_fit(batch)
            except ValueError as error:
                refused.append((number, str(error)))
        if not hasattr(self, "_centers"):
            raise ValueError(refused[0][1] if refused else "the stream holds no batch")
        if refused:
            numbers = [number for number, _ in refused]
            warnings.warn(
                f"{len(refused)} batches were left out, {numbers[:10]}; the first because: {refused[0][1]}",
                UserWarning,
                stacklevel=2,
            )
        self._warn()
        return self

    def _checked(self, X: Array, weight: Array | None) -> Samples:
        self._check_options()
        if self.max_iter < 1 or self.batch_size < 1 or self.tol < 0 or not self.reassignment_ratio >= 0:
            raise ValueError(
                f"max_iter ({self.max_iter}) and batch_size ({self.batch_size}) must be at least 1, tol ({self.tol}) "
                f"and reassignment_ratio ({self.reassignment_ratio}) not negative"
            )
        return self._samples(X, weight)

    def _best_start(self, samples: Samples, generator: torch.Generator) -> Tensor:
        """Of ``n_init`` starts on random samples the one with the least inertia on other random samples."""
        size = self.init_size or max(3 * self.batch_size, 3 * self.n_clusters)
        size = min(max(size, self.n_clusters), samples.n)
        given = not isinstance(self.init, str) and not callable(self.init)
        several = callable(self.init) or (isinstance(self.init, str) and self.init == "random")
        tries = 1 if given else (3 if several else 1) if self.n_init == "auto" else self.n_init
        if isinstance(tries, str) or tries < 1:
            raise ValueError(f"n_init must be 'auto' or at least 1, got {self.n_init!r}")
        trial = samples.subset(torch.randint(samples.n, (size,), generator=generator))
        best: tuple[float, Tensor] | None = None
        for _ in range(tries):
            drawn = samples.subset(torch.randperm(samples.n, generator=generator)[:size])
            centroids = start(drawn, self.n_clusters, self.init, generator)
            inertia = trial.assign(centroids)[1].sum().item() if tries > 1 else 0.0
            if best is None or inertia < best[0]:
                best = inertia, centroids
        assert best is not None
        return best[1]

    def _begin(self, centroids: Tensor, features: int, generator: torch.Generator) -> None:
        if self.metric == "cosine":
            centroids = torch.nn.functional.normalize(centroids, dim=1)
        self._centers, self._generator = centroids, generator
        self._seen = torch.zeros(self.n_clusters, dtype=torch.float64, device=centroids.device)
        self._since_reassignment = 0
        self.n_steps_, self.n_reassigned_, self.n_features_in_ = 0, 0, features

    def _step(self, batch: Samples) -> tuple[float, float]:
        """One update; the batch's inertia per unit of weight, and the centroids' squared shift."""
        before = self._centers
        _, sums, counts, inertia = batch.step(before)
        total = self._seen + counts
        weighted = before.double() * self._seen[:, None] + sums.double()
        # A cluster without weight in the batch stays.
        moved = torch.where((counts > 0)[:, None], means(weighted, total, before, self.metric), before)
        self._centers, self._seen = moved, total
        self._since_reassignment += batch.n
        if (self._seen == 0).any() or self._since_reassignment >= 10 * self.n_clusters:
            self._since_reassignment = 0
            self._reassign(batch)
        self.n_steps_ += 1
        weight = batch.flat_weight().sum(dtype=torch.float64).item()
        shift = (self._centers - before).double().square().sum().item()
        return inertia.item() / max(weight, 1e-300), shift

    def _reassign(self, batch: Samples) -> None:
        """Move clusters that have seen too little to random samples of the batch, at most half of these."""
        if not self.reassignment_ratio:
            return
        few = self._seen < self.reassignment_ratio * self._seen.max()
        most = batch.n // 2
        if int(few.sum()) > most:
            few[self._seen.argsort()[most:]] = False
        clusters = few.nonzero().flatten()
        if not len(clusters):
            return
        chosen = torch.randperm(batch.n, generator=self._generator)[: len(clusters)]
        self._centers = self._centers.clone()
        self._centers[clusters] = batch.take(chosen).to(self._centers.dtype)
        self._seen[clusters] = self._seen[~few].min()
        self.n_reassigned_ += len(clusters)

    def _publish(self, like: Array) -> None:
        self.cluster_centers_, self.counts_ = self._give(self._centers, like), self._give(self._seen, like)

    def _warn(self) -> None:
        if self.n_reassigned_:
            warnings.warn(
                f"{self.n_reassigned_} times a cluster that saw too few samples was moved to a random one",
                EmptyClusterWarning,
                stacklevel=3,
            )


class _Progress:
    """scikit-learn's early stopping: exponentially averaged inertia and shift."""

    def __init__(self, batch: int, samples: int, tolerance: float, patience: int | None):
        self.rate = min(2.0 * batch / (samples + 1), 1.0)
        self.tolerance, self.patience = tolerance, patience
        self.steps, self.average, self.shift = 0, 0.0, 0.0
        self.best, self.without = float("inf"), 0

    def finished(self, inertia: float, shift: float) -> bool:
        self.steps += 1
        if self.steps == 1:
            return False  # the first batch's inertia is that of the start
        first = self.steps == 2
        self.average = inertia if first else self.average * (1 - self.rate) + inertia * self.rate
        self.shift = shift if first else self.shift * (1 - self.rate) + shift * self.rate
        if self.tolerance > 0 and self.shift <= self.tolerance:
            return True
        if self.average < self.best:
            self.best, self.without = self.average, 0
        else:
            self.without += 1
        return self.patience is not None and self.without >= self.patience
