"""PiCIE's clustering of feature maps: k-means on the first batches, then updates weighted by counts."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.cluster._conventions import check_integer
from cmx_fast.cluster._samples import Samples
from cmx_fast.cluster.seeding import INITS, plus_plus
from cmx_fast.ops import _checks, kmeans_assign, kmeans_step

# The factor by which faiss moves the halves of a split cluster apart.
SPLIT = 1 / 1024
# Pixels among which k-means++ chooses.
PLUS_PLUS_PIXELS = 65_536
_STATE = ("cluster_centers_", "counts_", "loss_", "_updates", "_in_group", "_sums", "_counts", "_distance")
_LISTS = ("_start", "_places", "_lengths")


class Processes(Protocol):
    """Processes that cluster together, of which this one is ``rank``, as :class:`cmx_fast.distributed.RowsOfAll`."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""

    def kmeans_step(self, x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:func:`cmx_fast.ops.kmeans_step` of the unit rows of all processes; the labels are of this one's."""


class _Alone:
    """This process alone."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def kmeans_step(self, x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kmeans_step(x, centroids, normalize=True)


class PiCIEClustering:
    r"""Mini-batch k-means of pixels' unit features, as in PiCIE's reference code (Cho et al. 2021).

    The first ``init_batches`` are kept, or ``init_pixels`` of them, and clustered together by Lloyd's algorithm from
    random pixels; a cluster that falls empty there takes half of one of the largest. Every later group of
    ``update_every`` batches is assigned to the current centroids and moves them:

    .. math:: c_k \leftarrow c_k + n_k, \qquad \mu_k \leftarrow \mu_k + \frac{S_k - n_k \mu_k}{c_k}

    with the group's sums S and counts n. Clusters without a pixel in the group stay. Centroids are plain means of unit
    features and are not normalised. Where the reference takes features through the host, everything here stays on
    their device, and nothing waits for it.

    Args:
        n_clusters: K.
        init_batches: batches that the start is made of (reference scripts: 20 to 30; the default is the lower).
        init_iterations: Lloyd iterations at the start (reference scripts: 20 to 30; the default is the lower).
        init_pixels: pixels that the start is made of at most, drawn evenly from its batches; None: all, as the
            reference, which are 12.6 GB of float32 for 20 batches of 192 maps of 80 x 80 x 128.
        init: the centroids that Lloyd's algorithm begins with: "random" pixels (reference), or "k-means++" among up to
            65,536 pixels, which finds rare clusters and passes over vectors that are all alike.
        update_every: batches per update (reference: 1); the last group is left out when it is not full.
        random_state: seed of the pixels that the start begins with.
        processes: those that cluster together; None: this one alone. Each passes its share of every batch, pictures
            ``rank``, ``rank + size``, ... of it, which may be none, and calls :meth:`update` and :meth:`flush` as often
            as the others. The centroids are those of one process with all pictures, but for the order of float32's
            sums, and the same in all.

    Attributes:
        cluster_centers_: (K, D) float32. This and the others are there from the end of the start on.
        counts_: (K,) int64 pixels that each cluster has had, those of the start included.
        loss_: mean over the updates of a pixel's mean squared distance to its centroid, 0-d; before the first update
            that of the start.

    Memory: the batches of the start, or ``init_pixels`` vectors of them, until it is made; of several processes each
    has its share. Cost: one read of the features per update.
    """

    cluster_centers_: Tensor
    counts_: Tensor
    loss_: Tensor
    _sums: Tensor
    _counts: Tensor
    _distance: Tensor

    def __init__(
        self,
        n_clusters: int,
        *,
        init_batches: int = 20,
        init_iterations: int = 20,
        init_pixels: int | None = None,
        init: str = "random",
        update_every: int = 1,
        random_state: int = 0,
        processes: Processes | None = None,
    ):
        options = {
            "n_clusters": n_clusters,
            "init_batches": init_batches,
            "init_iterations": init_iterations,
            "update_every": update_every,
        }
        if init_pixels is not None:
            options["init_pixels"] = init_pixels
        for name, value in options.items():
            check_integer(name, value, least=1)
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(map(repr, INITS))}; got {init!r}")
        self.init_pixels, self.init = init_pixels, init
        self.n_clusters, self.init_iterations, self.update_every = n_clusters, init_iterations, update_every
        self.init_batches, self.random_state = init_batches, random_state
        self.processes: Processes = processes or _Alone()
        # Each batch's vectors in the start; their places among those of all processes, of one alone None; the number
        # that all have together.
        self._start: list[Tensor] = []
        self._places: list[Tensor | None] = []
        self._lengths: list[int] = []
        self._updates, self._in_group = 0, 0

    def update(self, features: Tensor) -> None:
        """Take the next batch, maps (B, D, H, W) or vectors (N, D) of any floating dtype.

        Raises:
            TypeError, ValueError: features of another kind, shape or width, or on the CPU with values that are not
                finite (on a GPU ``loss_`` shows them); fewer pixels in the start than clusters. A batch that is refused
                changes nothing.
        """
        started = hasattr(self, "cluster_centers_")
        before = self.cluster_centers_ if started else next(iter(self._start), None)
        _check(features, before, may_be_empty=self.processes.size > 1)
        features = features.detach()
        if not started:
            if _checks.readable(features) and not features.isfinite().all():
                raise ValueError(_not_finite(features))
            self._keep(features)
            if len(self._start) >= self.init_batches:
                self.flush()
            return
        _, sums, counts, inertia = self.processes.kmeans_step(features, self.cluster_centers_)
        if _checks.readable(inertia) and not inertia.isfinite():
            raise ValueError(_not_finite(features))
        self._sums, self._counts = self._sums + sums, self._counts + counts
        self._distance = self._distance + inertia / counts.sum()
        self._in_group += 1
        if self._in_group == self.update_every:
            self.counts_ = self.counts_ + self._counts
            change = self._sums - self._counts[:, None] * self.cluster_centers_
            self.cluster_centers_ = self.cluster_centers_ + change / self.counts_.clamp_min(1)[:, None]
            self._updates += 1
            self.loss_ = self.loss_ + (self._distance / self.update_every - self.loss_) / self._updates
            self._open_group()

    def flush(self) -> None:
        """End the stream: make the start from the batches that came, if it has not been made."""
        if hasattr(self, "cluster_centers_") or not self._start:
            return
        centroids = self._first_centroids()
        for _ in range(self.init_iterations):
            sums, counts, _ = self._lloyd(centroids)
            centroids = _split_largest(sums / counts.clamp_min(1)[:, None], counts)
        _, self.counts_, inertia = self._lloyd(centroids)
        self.cluster_centers_ = centroids
        self.loss_ = inertia / self.counts_.sum()
        self._start, self._places, self._lengths = [], [], []
        self._open_group()

    def assign(self, features: Tensor) -> Tensor:
        """The cluster of every pixel, int64 (B, H, W) or (N,)."""
        if not hasattr(self, "cluster_centers_"):
            raise RuntimeError("no centroids yet: call update() with features, then flush()")
        return kmeans_assign(features, self.cluster_centers_, normalize=True)[0]

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict`, with the same options, continues to the same numbers."""
        state = {name: getattr(self, name) for name in _STATE if hasattr(self, name)}
        return state | {name: list(getattr(self, name)) for name in _LISTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`, on its tensors' device."""
        centers = state.get("cluster_centers_")
        if centers is not None and len(centers) != self.n_clusters:
            raise ValueError(f"the state has {len(centers)} clusters, this clustering {self.n_clusters}")
        for name in _STATE:
            self.__dict__.pop(name, None)
        self.__dict__.update(state | {name: list(state[name]) for name in _LISTS})

    def _open_group(self) -> None:
        self._in_group = 0
        self._sums, self._counts = torch.zeros_like(self.cluster_centers_), torch.zeros_like(self.counts_)
        self._distance = torch.zeros_like(self.loss_)

    def _lloyd(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums, counts and inertia of all batches of the start."""
        results = [kmeans_step(batch, centroids, normalize=True)[1:] for batch in self._start]
        sums, counts, inertia = (
            self.processes.sum(torch.stack(parts).sum(0)) for parts in zip(*results, strict=True)
        )
        return sums, counts, inertia

    def _keep(self, features: Tensor) -> None:
        """Take the batch's share of the start's pixels: the batch itself, or rows (n, D) drawn from all processes'."""
        rank, size = self.processes.rank, self.processes.size
        total, area = _count(features), features.shape[2:].numel()
        if size > 1:
            total = int(self.processes.sum(torch.tensor(total, device=features.device)))
        share = total if self.init_pixels is None else min(total, -(-self.init_pixels // self.init_batches))
        if size == 1 and share == total:
            self._start.append(features)
            self._places.append(None)
        else:
            generator = torch.Generator().manual_seed(self.random_state * 1_000_003 + len(self._start))
            drawn = (
                torch.randperm(total, generator=generator)[:share] if share < total else torch.arange(total)
            )
            # Picture p of the batch is picture p // size of process p % size.
            places = (drawn // area % size == rank).nonzero()[:, 0]
            mine = drawn[places]
            own = mine // area // size * area + mine % area
            self._start.append(_rows(features)[own.to(features.device)])
            self._places.append(None if size == 1 else places)
        self._lengths.append(share)

    def _first_centroids(self) -> Tensor:
        """Unit vectors (K, D) among the start's pixels."""
        total = sum(self._lengths)
        if total < self.n_clusters:
            raise ValueError(f"{total} feature vectors came, fewer than the {self.n_clusters} clusters")
        generator = torch.Generator().manual_seed(self.random_state)
        numbers = torch.randperm(total, generator=generator)
        if self.init == "random":
            return self._pick(numbers[: self.n_clusters])
        unit = self._pick(numbers[:PLUS_PLUS_PIXELS])
        return plus_plus(Samples(unit, None, metric="l2", normalize=False), self.n_clusters, generator)

    def _pick(self, numbers: Tensor) -> Tensor:
        """The start's vectors of these numbers, counted over its batches, whichever process has them: unit (n, D)."""
        slots = torch.full((sum(self._lengths),), -1)
        slots[numbers] = torch.arange(len(numbers))
        first = self._start[0]
        picked = first.new_zeros(len(numbers), first.shape[1], dtype=torch.float32)
        for batch, places, of_batch in zip(
            self._start, self._places, slots.split(self._lengths), strict=True
        ):
            here = of_batch if places is None else of_batch[places]
            rows = (here >= 0).nonzero()[:, 0]
            area = batch.shape[2:].numel()
            index = rows.to(batch.device)
            chosen = batch.flatten(2)[index // area, :, index % area] if batch.dim() == 4 else batch[index]
            picked[here[rows].to(batch.device)] = chosen.float()
        return F.normalize(self.processes.sum(picked), dim=1)


def _split_largest(centroids: Tensor, counts: Tensor) -> Tensor:
    """Split one of the largest clusters for each empty one, as in faiss, without waiting for the device to count them.

    Where more clusters are empty than not, several share one.
    """
    empty = counts == 0
    rank = (empty.cumsum(0) - 1).clamp_min(0) % (~empty).sum()
    donor = counts.argsort(descending=True, stable=True)[rank]
    is_donor = torch.zeros_like(counts).index_add_(0, donor, empty.to(counts.dtype)) > 0
    # Alternating signs: along a single direction the halves would stay on one ray.
    signs = torch.ones_like(centroids)
    signs[:, 1::2] = -1
    source = torch.where(empty, donor, torch.arange(len(counts), device=counts.device))
    apart = (is_donor.to(centroids.dtype) - empty.to(centroids.dtype))[:, None] * SPLIT
    return centroids[source] * (1 + apart * signs)


def _check(features: Tensor, before: Tensor | None, *, may_be_empty: bool) -> None:
    """Refuse features of another kind or shape, or of another width or device than those before.

    The start would not notice any of these before its end.
    """
    _checks.check_floating("features", features, 2, "(B, D, H, W) or (N, D)")
    empty = features.numel() == 0 and not (may_be_empty and features.shape[1:].numel())
    if features.dim() not in (2, 4) or empty:
        raise ValueError(
            f"features must have shape (B, D, H, W) or (N, D) without a 0, got {tuple(features.shape)}"
        )
    if before is not None and (features.shape[1], features.device) != (before.shape[1], before.device):
        raise ValueError(
            f"features have {features.shape[1]} channels on {features.device}, those before had {before.shape[1]} on "
            f"{before.device}"
        )


def _rows(features: Tensor) -> Tensor:
    """Maps (B, D, H, W) or rows (N, D) as rows."""
    return features.flatten(2).transpose(1, 2).flatten(0, 1) if features.dim() == 4 else features


def _count(features: Tensor) -> int:
    return features.numel() // features.shape[1]


def _not_finite(features: Tensor) -> str:
    bad = (~features.isfinite()).any(1).flatten().nonzero().flatten().tolist()
    return (
        f"features hold NaN or infinity in {len(bad)} of {_count(features)} vectors; the first are {bad[:10]}"
    )
