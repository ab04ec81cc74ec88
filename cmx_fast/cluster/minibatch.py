"""Mini-batch k-means with scikit-learn's names and meaning, and from a stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from cmx_fast.cluster._conventions import check_column_names, check_flag, check_integer, check_number
from cmx_fast.cluster._estimator import Array, Estimator, RandomState, generator_of, mean_variance, means
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster.kmeans import EmptyClusterWarning
from cmx_fast.cluster.seeding import Init, choice, draw, sketch, start


@dataclass(frozen=True)
class _Clusters:
    """The clusters after some batches, replaced as a whole: a batch that fails changes nothing."""

    centroids: Tensor
    seen: Tensor
    generator: torch.Generator
    since_reassignment: int = 0
    steps: int = 0
    reassigned: int = 0


class MiniBatchKMeans(Estimator):
    r"""K-means from random batches (Sculley 2010): each moves the centroids by its share of what they have seen.

    .. math:: \mu_k \leftarrow \frac{c_k \mu_k + S_k}{c_k + n_k}, \qquad c_k \leftarrow c_k + n_k

    ``fit`` draws its batches by ``sample_weight``, with replacement, and every sample of a batch counts once, as in
    scikit-learn; in ``partial_fit`` the weights count as they are. A sample of weight 0 does not count.

    Takes and gives what :class:`KMeans` does. Beyond scikit-learn's class there are ``metric``, ``normalize``, maps as
    input and :meth:`fit_stream`.

    Args:
        n_clusters: K.
        init, n_init: as in :class:`KMeans`, tried on ``init_size`` samples, also of the first batch of
            ``partial_fit``; "auto": 3 for "random" and callables, else 1.
        max_iter: passes over the data, in samples drawn.
        batch_size: samples per batch of ``fit``.
        verbose: print the starts' and the batches' inertia.
        compute_labels: assign the whole data at the end of ``fit``, and a batch after ``partial_fit``: one more read.
        random_state: seed, NumPy's ``RandomState`` or a CPU ``torch.Generator``; None: another result every time.
        tol: stop where a batch moves the centroids, by their squared shift, no more than this times the mean weighted
            variance of the features; 0: don't.
        max_no_improvement: stop after so many batches without a lower averaged inertia; None: don't.
        init_size: samples that starts are tried on, different ones drawn by weight; None: 3 batches, or 3 K where
            these are fewer than K.
        reassignment_ratio: clusters that have seen less than this share (0 to 1) of the largest one's samples are moved
            to random samples now and then.
        metric, normalize: as in :class:`KMeans`.

    Attributes:
        cluster_centers_, n_features_in_, feature_names_in_: as in :class:`KMeans`.
        labels_, inertia_: of the last ``fit`` data or ``partial_fit`` batch; none after ``fit_stream``. Without
            ``compute_labels`` only an estimate of the inertia by the averaged batches of ``fit``.
        counts_: (K,) float64 samples drawn, and weights of ``partial_fit``, that each cluster has seen.
        n_steps_, n_iter_: batches so far, and passes over the data that they make.
        n_reassigned_: times that a cluster was moved to a random sample; ``fit`` and ``fit_stream`` warn of it once.

    Example:
        >>> import torch
        >>> from cmx_fast.cluster import MiniBatchKMeans
        >>> clusters = MiniBatchKMeans(2, random_state=0)
        >>> for _ in range(3):
        ...     clusters = clusters.partial_fit(torch.tensor([[0.0], [1.0], [10.0], [11.0]]))
        >>> clusters.predict(torch.tensor([[0.0], [1.0]])).unique().numel()
        1
    """

    n_reassigned_: int
    _clusters: _Clusters

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Init = "k-means++",
        max_iter: int = 100,
        batch_size: int = 1024,
        verbose: int = 0,
        compute_labels: bool = True,
        random_state: RandomState = None,
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
        self.verbose = verbose
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
        clusters = self._begin(self._best_start(samples, generator), generator)
        batch = min(self.batch_size, samples.n)
        tolerance = self.tol * mean_variance(samples) if self.tol else 0.0
        steps = self.max_iter * samples.n // batch
        progress = _Progress(batch, samples.n, tolerance, self.max_no_improvement)
        # Drawn by weight, each sample of a batch counts once.
        once, sums = samples.weighted(None), samples.flat_weight().cumsum(0)
        for step in range(1, steps + 1):
            clusters, inertia, shift = self._step(clusters, once.subset(draw(sums, batch, generator)))
            reason = progress.reason_to_stop(inertia / batch, shift)
            if self.verbose:
                print(
                    f"Minibatch step {step}/{steps}: mean batch inertia: {inertia / batch}, averaged: "
                    f"{progress.average}"
                )
            if reason:
                if self.verbose:
                    print(f"Converged ({reason}) at step {step}/{steps}")
                break
        self._publish(clusters, samples)
        self._keep_names(samples)
        if not self.compute_labels:
            self.inertia_ = progress.average * samples.flat_weight().sum().item() * samples.scale
        self.n_iter_ = -(-clusters.steps * batch // samples.n)
        self._warn()
        return self

    def partial_fit(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Self:
        """Move the centroids by one batch; the first one also starts them. A batch that is refused changes nothing.

        Raises:
            TypeError, ValueError: as :meth:`fit`; also another number of features than before.
        """
        samples = self._checked(X, sample_weight)
        self._publish(self._next(getattr(self, "_clusters", None), samples), samples)
        return self

    def fit_stream(self, batches: Iterable[Array]) -> Self:
        """:meth:`partial_fit` on every batch of an iterator, from a new start; one at a time is held, and read once.

        Raises:
            ValueError: an empty stream, or a batch that :meth:`partial_fit` would refuse, by its number. The centroids
                of the batches before it stay, or with none before it those of an earlier fit, and :meth:`partial_fit`
                goes on from there.
        """
        clusters = None
        for number, batch in enumerate(batches):
            try:
                samples = self._checked(batch, None)
                clusters = self._next(clusters, samples)
            except ValueError as error:
                raise ValueError(f"batch {number} of the stream: {error}") from error
            self._publish(clusters, samples, label=False)
        if clusters is None:
            raise ValueError("the stream holds no batch")
        self._warn()
        return self

    def _checked(self, X: Array, weight: Array | None) -> Samples:
        self._check_options()
        check_integer("batch_size", self.batch_size, least=1)
        if self.max_no_improvement is not None:
            check_integer("max_no_improvement", self.max_no_improvement, least=0, other="None or ")
        if self.init_size is not None:
            check_integer("init_size", self.init_size, least=1, other="None or ")
        check_number("reassignment_ratio", self.reassignment_ratio, most=1)
        check_flag("compute_labels", self.compute_labels)
        return self._samples(X, weight)

    def _best_start(self, samples: Samples, generator: torch.Generator) -> Tensor:
        """The one of ``n_init`` starts on random samples with the least weighted inertia on other random samples."""
        size = 3 * min(self.batch_size, samples.n) if self.init_size is None else self.init_size
        if self.init_size is not None and size < self.n_clusters:
            warnings.warn(
                f"init_size={size} should be larger than n_clusters={self.n_clusters}. Setting it to min(3*n_clusters, "
                "n_samples)",
                RuntimeWarning,
                stacklevel=3,
            )
        size = size if size >= self.n_clusters else 3 * self.n_clusters
        size, tries = min(size, samples.n), self._starts(several=3)

        def draw_start() -> Tensor:
            return start(sketch(samples, size, generator), self.n_clusters, self.init, generator)

        if tries == 1:
            return draw_start()
        trial = sketch(samples, size, generator)
        best: tuple[float, Tensor] | None = None
        for number in range(1, tries + 1):
            centroids = draw_start()
            _, inertia = trial.labels_and_inertia(centroids)
            if self.verbose:
                print(f"Inertia for init {number}/{tries}: {inertia}")
            if best is None or inertia < best[0]:
                best = inertia, centroids
        assert best is not None
        return best[1]

    def _begin(self, centroids: Tensor, generator: torch.Generator) -> _Clusters:
        if self.metric == "cosine":
            centroids = torch.nn.functional.normalize(centroids, dim=1)
        seen = torch.zeros(self.n_clusters, dtype=torch.float64, device=centroids.device)
        return _Clusters(centroids, seen, generator)

    def _next(self, clusters: _Clusters | None, batch: Samples) -> _Clusters:
        """The clusters after one more batch; the first batch starts them."""
        if clusters is None:
            if batch.n < self.n_clusters:
                raise ValueError(f"n_samples={batch.n} should be >= n_clusters={self.n_clusters}.")
            generator = generator_of(self.random_state)
            clusters = self._begin(self._best_start(batch, generator), generator)
        else:
            check_column_names(self, batch.names)
        self._check_width(batch, clusters.centroids.shape[1])
        centroids, seen = clusters.centroids.to(batch.device), clusters.seen.to(batch.device)
        here = replace(clusters, centroids=centroids, seen=seen)
        return self._step(here, batch)[0]

    def _step(self, clusters: _Clusters, batch: Samples) -> tuple[_Clusters, float, float]:
        """The clusters after an update, the batch's inertia in units of its scale, and the centroids' squared shift."""
        before = clusters.centroids
        _, sums, counts, inertia = batch.step(before)
        had, weight = counts > 0, counts * batch.scale
        seen = clusters.seen + weight
        kept, share = (torch.where(had, part / seen, 0)[:, None] for part in (clusters.seen, weight))
        mean = sums.double() / torch.where(had, counts, 1)[:, None]
        # A cluster without weight in the batch stays.
        centroids = means(before.double() * kept + mean * share, had.double(), before, self.metric)
        after = replace(
            clusters,
            centroids=centroids,
            seen=seen,
            since_reassignment=clusters.since_reassignment + batch.present,
            steps=clusters.steps + 1,
        )
        if (seen == 0).any() or after.since_reassignment >= 10 * self.n_clusters:
            after = self._reassigned(after, batch)
        shift = (after.centroids - before).double().square().sum().item()
        return after, inertia.item(), shift

    def _reassigned(self, clusters: _Clusters, batch: Samples) -> _Clusters:
        """Move clusters with too few samples to samples of the batch, drawn by weight, at most half of these."""
        clusters = replace(clusters, since_reassignment=0)
        few = clusters.seen < self.reassignment_ratio * clusters.seen.max()
        most = batch.present // 2
        if int(few.sum()) > most:
            few[clusters.seen.argsort()[most:]] = False
        moved = few.nonzero().flatten()
        if not len(moved):
            return clusters
        chosen = choice(batch.flat_weight(), len(moved), clusters.generator)
        centroids, seen = clusters.centroids.clone(), clusters.seen.clone()
        centroids[moved] = batch.take(chosen).to(centroids.dtype)
        seen[moved] = seen[~few].min()
        return replace(clusters, centroids=centroids, seen=seen, reassigned=clusters.reassigned + len(moved))

    def _publish(self, clusters: _Clusters, samples: Samples, label: bool = True) -> None:
        """Set the fitted attributes in the kind of array that the samples came in."""
        fitted: dict[str, object] = {}
        if label and self.compute_labels:
            labels, fitted["inertia_"] = samples.labels_and_inertia(clusters.centroids)
            fitted["labels_"] = samples.give(samples.shaped(labels))
        for name in ("labels_", "inertia_"):
            self.__dict__.pop(name, None)
        self.__dict__.update(
            fitted,
            _clusters=clusters,
            cluster_centers_=samples.give(clusters.centroids),
            counts_=samples.give(clusters.seen),
            n_steps_=clusters.steps,
            n_iter_=clusters.steps,
            n_reassigned_=clusters.reassigned,
            n_features_in_=samples.d,
        )
        if clusters.steps == 1:
            self._keep_names(samples)

    def _warn(self) -> None:
        if self.n_reassigned_:
            warnings.warn(
                f"{self.n_reassigned_} times a cluster that saw too few samples was moved to a random one",
                EmptyClusterWarning,
                stacklevel=3,
            )


class _Progress:
    """scikit-learn's early stopping, from the second batch on: small shifts, or no lower averaged inertia."""

    def __init__(self, batch: int, samples: int, tolerance: float, patience: int | None):
        self.rate = min(2.0 * batch / (samples + 1), 1.0)
        self.tolerance, self.patience = tolerance, patience
        self.steps, self.average = 0, 0.0
        self.best, self.without = float("inf"), 0

    def reason_to_stop(self, inertia: float, shift: float) -> str:
        """The reason why this batch is the last one; empty if it isn't."""
        self.steps += 1
        first = self.steps <= 2
        self.average = inertia if first else self.average * (1 - self.rate) + inertia * self.rate
        if self.steps == 1:
            return ""  # the first batch's inertia is that of the start
        if self.tolerance > 0 and shift <= self.tolerance:
            return "small centers change"
        if self.average < self.best:
            self.best, self.without = self.average, 0
        else:
            self.without += 1
        out_of_patience = self.patience is not None and self.without >= self.patience
        return "lack of improvement in inertia" if out_of_patience else ""
