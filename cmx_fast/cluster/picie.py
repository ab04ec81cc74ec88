"""PiCIE's clustering of feature maps: k-means on the first batches, then updates weighted by counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.cluster._conventions import check_integer
from cmx_fast.ops import _checks, kmeans_assign, kmeans_step

# The factor by which faiss moves the halves of a split cluster apart.
SPLIT = 1 / 1024
_STATE = (
    "cluster_centers_", "counts_", "loss_", "_start", "_updates", "_in_group", "_sums", "_counts", "_distance"
)  # fmt: skip


class PiCIEClustering:
    r"""Mini-batch k-means of pixels' unit features, as in PiCIE's reference code (Cho et al. 2021).

    The first ``init_batches`` are kept and clustered together by Lloyd's algorithm from random pixels; a cluster that
    falls empty there takes half of one of the largest. Every later group of ``update_every`` batches is assigned to the
    current centroids and moves them:

    .. math:: c_k \leftarrow c_k + n_k, \qquad \mu_k \leftarrow \mu_k + \frac{S_k - n_k \mu_k}{c_k}

    with the group's sums S and counts n. Clusters without a pixel in the group stay. Centroids are plain means of unit
    features and are not normalised. Where the reference takes features through the host, everything here stays on
    their device, and nothing waits for it.

    Args:
        n_clusters: K.
        init_batches: batches that the start is made of (reference scripts: 20 to 30; the default is the lower).
        init_iterations: Lloyd iterations at the start (reference scripts: 20 to 30; the default is the lower).
        update_every: batches per update (reference: 1); the last group is left out when it is not full.
        random_state: seed of the pixels that the start begins with.

    Attributes:
        cluster_centers_: (K, D) float32. This and the others are there from the end of the start on.
        counts_: (K,) int64 pixels that each cluster has had, those of the start included.
        loss_: mean over the updates of a pixel's mean squared distance to its centroid, 0-d; before the first update
            that of the start.

    Memory: the batches of the start, until it is made. Cost: one read of the features per update.
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
        update_every: int = 1,
        random_state: int = 0,
    ):
        options = {
            "n_clusters": n_clusters,
            "init_batches": init_batches,
            "init_iterations": init_iterations,
            "update_every": update_every,
        }
        for name, value in options.items():
            check_integer(name, value, least=1)
        self.n_clusters, self.init_iterations, self.update_every = n_clusters, init_iterations, update_every
        self.init_batches, self.random_state = init_batches, random_state
        self._start: list[Tensor] = []
        self._updates, self._in_group = 0, 0

    def update(self, features: Tensor) -> None:
        """Take the next batch, maps (B, D, H, W) or vectors (N, D) of any floating dtype.

        Raises:
            TypeError, ValueError: features of another kind, shape or width, or on the CPU with values that are not
                finite (on a GPU ``loss_`` shows them); fewer pixels in the start than clusters. A batch that is refused
                changes nothing.
        """
        started = hasattr(self, "cluster_centers_")
        _check(features, self.cluster_centers_ if started else next(iter(self._start), None))
        features = features.detach()
        if not started:
            if _checks.readable(features) and not features.isfinite().all():
                raise ValueError(_not_finite(features))
            self._start.append(features)
            if len(self._start) >= self.init_batches:
                self.flush()
            return
        _, sums, counts, inertia = kmeans_step(features, self.cluster_centers_, normalize=True)
        if _checks.readable(inertia) and not inertia.isfinite():
            raise ValueError(_not_finite(features))
        self._sums, self._counts = self._sums + sums, self._counts + counts
        self._distance = self._distance + inertia / _count(features)
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
        centroids = self._random_pixels()
        for _ in range(self.init_iterations):
            sums, counts, _ = self._lloyd(centroids)
            centroids = _split_largest(sums / counts.clamp_min(1)[:, None], counts)
        _, self.counts_, inertia = self._lloyd(centroids)
        self.cluster_centers_ = centroids
        self.loss_ = inertia / self.counts_.sum()
        self._start = []
        self._open_group()

    def assign(self, features: Tensor) -> Tensor:
        """The cluster of every pixel, int64 (B, H, W) or (N,)."""
        if not hasattr(self, "cluster_centers_"):
            raise RuntimeError("no centroids yet: call update() with features, then flush()")
        return kmeans_assign(features, self.cluster_centers_, normalize=True)[0]

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict`, with the same options, continues to the same numbers."""
        state = {name: getattr(self, name) for name in _STATE if hasattr(self, name)}
        return state | {"_start": list(self._start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`, on its tensors' device."""
        centers = state.get("cluster_centers_")
        if centers is not None and len(centers) != self.n_clusters:
            raise ValueError(f"the state has {len(centers)} clusters, this clustering {self.n_clusters}")
        for name in _STATE:
            self.__dict__.pop(name, None)
        self.__dict__.update(state, _start=list(state["_start"]))

    def _open_group(self) -> None:
        self._in_group = 0
        self._sums, self._counts = torch.zeros_like(self.cluster_centers_), torch.zeros_like(self.counts_)
        self._distance = torch.zeros_like(self.loss_)

    def _lloyd(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums, counts and inertia of all batches of the start."""
        results = [kmeans_step(batch, centroids, normalize=True)[1:] for batch in self._start]
        sums, counts, inertia = (torch.stack(parts).sum(0) for parts in zip(*results, strict=True))
        return sums, counts, inertia

    def _random_pixels(self) -> Tensor:
        """Draw K different pixels of the start as unit vectors."""
        sizes = torch.tensor([_count(batch) for batch in self._start])
        total = int(sizes.sum())
        if total < self.n_clusters:
            raise ValueError(f"{total} feature vectors came, fewer than the {self.n_clusters} clusters")
        generator = torch.Generator().manual_seed(self.random_state)
        chosen = torch.randperm(total, generator=generator)[: self.n_clusters]
        first = sizes.cumsum(0) - sizes
        pixels = []
        for index in chosen.tolist():
            batch = int((first <= index).sum()) - 1
            place, maps = index - int(first[batch]), self._start[batch]
            area = maps[0, 0].numel()
            pixels.append(maps.flatten(2)[place // area, :, place % area] if maps.dim() == 4 else maps[place])
        return F.normalize(torch.stack(pixels).float(), dim=1)


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


def _check(features: Tensor, before: Tensor | None) -> None:
    """Refuse features of another kind or shape, or of another width or device than those before.

    The start would not notice any of these before its end.
    """
    _checks.check_floating("features", features, 2, "(B, D, H, W) or (N, D)")
    if features.dim() not in (2, 4) or features.numel() == 0:
        raise ValueError(
            f"features must have shape (B, D, H, W) or (N, D) without a 0, got {tuple(features.shape)}"
        )
    if before is not None and (features.shape[1], features.device) != (before.shape[1], before.device):
        raise ValueError(
            f"features have {features.shape[1]} channels on {features.device}, those before had {before.shape[1]} on "
            f"{before.device}"
        )


def _count(features: Tensor) -> int:
    return features.numel() // features.shape[1]


def _not_finite(features: Tensor) -> str:
    bad = (~features.isfinite()).any(1).flatten().nonzero().flatten().tolist()
    return (
        f"features hold NaN or infinity in {len(bad)} of {_count(features)} vectors; the first are {bad[:10]}"
    )
