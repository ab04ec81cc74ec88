"""PiCIE's schedule: an epoch clusters and labels both views of every picture, then learns the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cmx_fast.cluster import PiCIEClustering
from cmx_fast.distributed import RowsOfAll
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.encoder_maps import KeptViews
from cmx_fast.systems.c2l.picie import PiCIE
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.views import draw_views
from cmx_fast.train.trainable import Batch

VIEWS = (1, 2)


class PseudoLabels:
    """Training pictures with the current epoch's clusters of both views, which a checkpoint keeps.

    An epoch draws new views of every picture and passes over them three times: for the centroids (mini-batch k-means on
    the unit features, pictures in shuffled order), for the labels (each pixel's nearest centroid, in evaluation mode),
    and for training. Labels stay on the device, in bytes up to 256 clusters. Several processes share the pictures of
    every pass; the centroids and labels are the same in all, and those of one process but for rounding. Batch norms see
    a process's own share of a k-means batch, as in training; their running statistics are averaged.

    Args:
        log: called after each clustering with the step and its figures: the mean squared distance of unit features to
            their centroids and the largest cluster's share of the pixels, both views.
        kept_views: a fixed encoder's maps of the views; None: views are drawn anew in every epoch.

    Attributes:
        epoch: the labels' epoch, counted from 0; -1 before the first.
        labels: (2, pictures, side, side).
        centroids: (2, K, D).
        weight: (2, K), of each cluster in the loss.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: PiCIE,
        pictures: Pictures,
        seed: int,
        log: Callable[[int, dict[str, float]], None],
        kept_views: KeptViews | None = None,
    ):
        recipe = model.recipe
        self.fabric, self.model, self.pictures, self.seed, self.log = fabric, model, pictures, seed, log
        self.kept_views = kept_views
        self.recipe: C2LRecipe = recipe
        self.processes = RowsOfAll() if fabric.world_size > 1 else None
        self.epoch = -1
        side, device = model.side, pictures.device
        kind = torch.uint8 if recipe.clusters <= 256 else torch.int32
        self.labels = torch.zeros(2, len(pictures), side, side, dtype=kind, device=device)
        self.centroids = torch.zeros(2, recipe.clusters, recipe.width, device=device)
        self.weight = torch.zeros(2, recipe.clusters, device=device)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("epoch", "labels", "centroids", "weight")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.pictures.device) if isinstance(value, Tensor) else value)

    @property
    def batch(self) -> int:
        """The pictures of a step of all processes together, as many of each."""
        return self.recipe.batch // self.fabric.world_size * self.fabric.world_size

    @property
    def steps_per_epoch(self) -> int:
        """The number of full batches, at least 1; pictures left over come up in other epochs."""
        return max(1, len(self.pictures) // self.batch)

    def batches(self, start: int) -> Iterator[Batch]:
        """Training batches from this step on, as :class:`cmx_fast.systems.c2l.picie.PiCIE` takes them.

        Before an epoch's first batch the views are clustered with the weights of that moment.
        """
        rank, world, per_epoch = self.fabric.global_rank, self.fabric.world_size, self.steps_per_epoch
        for epoch in range(start // per_epoch, self.recipe.epochs):
            if self.epoch < epoch:
                self.renew(epoch)
            rows = self.shuffled(epoch).split(self.batch)[:per_epoch]
            left = rows[max(0, start - epoch * per_epoch) :]
            for index, batch in self.views((part[rank::world] for part in left), epoch):
                for i, view in enumerate(VIEWS):
                    batch[f"labels{view}"] = self.labels[i, index.to(self.labels.device)].long()
                    batch[f"centroids{view}"] = self.centroids[i]
                    batch[f"weight{view}"] = self.weight[i]
                yield batch

    @torch.no_grad()
    def renew(self, epoch: int) -> None:
        """Cluster and label every picture's views of this epoch."""
        recipe, model, processes = self.recipe, self.model, self.processes
        clusterings = [
            new_clustering(recipe, recipe.clusters, self.seed * 1009 + epoch, processes) for _ in VIEWS
        ]
        model.train(recipe.cluster_in_train_mode)
        for _, view, maps in self.passes(epoch, self.shuffled(epoch).split(recipe.cluster_batch)):
            clusterings[view].update(maps)
        for clustering in clusterings:
            clustering.flush()
        if processes is not None and recipe.cluster_in_train_mode:
            average_statistics(model, processes)
        model.eval()
        self.labels.zero_()
        in_order = torch.arange(len(self.pictures)).split(recipe.cluster_batch)
        for index, view, maps in self.passes(epoch, in_order):
            if len(maps):
                labels = clusterings[view].assign(maps)
                self.labels[view, index.to(self.labels.device)] = labels.to(self.labels.dtype)
        if processes is not None:
            self.labels = processes.sum(self.labels)
        model.train()
        largest = 0.0
        for i, clustering in enumerate(clusterings):
            self.centroids[i] = clustering.cluster_centers_
            share = torch.bincount(self.labels[i].flatten().long(), minlength=recipe.clusters).float()
            share /= share.sum()
            self.weight[i] = share if recipe.proportional_weights else 1.0
            largest += float(share.max()) / 2
        distance = sum(float(clustering.loss_) for clustering in clusterings) / 2
        self.log(epoch * self.steps_per_epoch, {"k-means": distance, "largest cluster": largest})
        self.epoch = epoch

    def passes(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, int, Tensor]]:
        """For each of ``rows``, of which this process takes its share, and each view: indices, 0 or 1, and features."""
        shares = [own_share(part, self.processes) for part in rows]
        loaded = self.views((own for own, _ in shares), epoch)
        for (_, count), (index, views) in zip(shares, loaded, strict=True):
            for view in (0, 1):
                with self.fabric.autocast():
                    features = (
                        self.model.features(views["image2"], views["warp"])
                        if view
                        else self.model.features(views["image1"])
                    )
                yield index[:count], view, features[:count]

    def shuffled(self, epoch: int) -> Tensor:
        """The indices of all pictures in the epoch's order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.pictures), generator=generator)

    def views(self, rows: Iterable[Tensor], epoch: int) -> Iterator[tuple[Tensor, Batch]]:
        """For each of ``rows``: these indices and the epoch's views, "image1", "image2" and "warp"."""
        if self.kept_views is not None:
            for index in rows:
                yield index, self.kept_views.views(index, epoch)
        else:
            for index, images in self.pictures.load_images(rows):
                yield index, draw_views(self.recipe, images, index, self.seed, epoch, images.device)


def own_share(rows: Tensor, processes: RowsOfAll | None) -> tuple[Tensor, int]:
    """This process's pictures of a batch, and how many of them count.

    Of a batch with fewer pictures than processes one without a picture takes the first, which does not count: all call
    the network equally often, as batch norms that see all processes need it.
    """
    if processes is None:
        return rows, len(rows)
    own = rows[processes.rank :: processes.size]
    return (own, len(own)) if len(own) else (rows[:1], 0)


@torch.no_grad()
def average_statistics(model: nn.Module, processes: RowsOfAll) -> None:
    """Give batch norms' running means and variances their mean over the processes, whose pictures differed."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffer.copy_(processes.sum(buffer) / processes.size)


def new_clustering(
    recipe: C2LRecipe, clusters: int, seed: int, processes: RowsOfAll | None = None
) -> PiCIEClustering:
    """Mini-batch k-means with the recipe's numbers."""
    return PiCIEClustering(
        clusters,
        init_batches=recipe.init_batches,
        init_iterations=recipe.init_iterations,
        init_pixels=recipe.init_pixels,
        init=recipe.init,
        random_state=seed,
        processes=processes,
    )


@torch.no_grad()
def final_centroids(fabric: Fabric | None, model: PiCIE, pictures: Pictures, seed: int) -> Tensor:
    """Centroids (K, D) by which held-out pictures are classified.

    One pass of mini-batch k-means over the pictures, not augmented and in evaluation mode, in the fabric's precision or
    float32. PiCIE's code clusters anew for its evaluation too. The fabric's processes share the pictures.
    """
    model.eval()
    processes = RowsOfAll() if fabric is not None and fabric.world_size > 1 else None
    clustering = new_clustering(model.recipe, model.recipe.test_clusters, seed, processes)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    shares = [own_share(rows, processes) for rows in order.split(model.recipe.cluster_batch)]
    for (_, count), (_, images) in zip(shares, pictures.load(own for own, _ in shares), strict=True):
        with nullcontext() if fabric is None else fabric.autocast():
            features = model.features(images)
        clustering.update(features[:count])
    clustering.flush()
    return clustering.cluster_centers_


def clustering_bytes(recipe: C2LRecipe, pictures: int, side: int, processes: int = 1) -> int:
    """The most that an epoch's clustering keeps in each of several processes, in bytes, beside the network's own.

    Of both views the start's vectors and the labels, and one view's features of a k-means batch, all float32. At the
    paper's numbers (320 pixels, 6,000 pictures) 2.1 GB of vectors, 0.08 of labels and 0.63 of features.
    """
    share = -(-recipe.cluster_batch // processes)
    vector = 4 * recipe.width
    start = -(-recipe.init_pixels // recipe.init_batches) * recipe.init_batches
    start = min(start, min(recipe.init_batches * recipe.cluster_batch, pictures) * side**2)
    label = 1 if recipe.clusters <= 256 else 4
    return 2 * start * vector // processes + 2 * pictures * side**2 * label + share * side**2 * vector
