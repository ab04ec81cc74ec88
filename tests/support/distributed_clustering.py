"""C2L's clustering in several processes; each saves its results as ``<rank>.pt``."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from cmx_fast.cluster import PiCIEClustering
from cmx_fast.distributed import RowsOfAll
from cmx_fast.systems.c2l.encoder_maps import KeptViews
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.pseudo_labels import PseudoLabels, average_statistics, final_centroids
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.train.fabric import new_fabric

PICTURES, SHAPES = 13, [(6, 4, 4), (8, 2, 2)]
CASES = {
    "random": {},
    "random, drawn": {"init_pixels": 100},
    "k-means++": {"init": "k-means++"},
    "k-means++, drawn": {"init": "k-means++", "init_pixels": 100},
}


def join(rank: int, world: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29400 + int(Path(folder).stat().st_ino) % 4000),
    }  # fmt: skip
    torch.set_num_threads(1)


def maps(seed: int, pictures: int) -> Tensor:
    """Maps (B, 12, 5, 5) around five directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(5, (pictures, 5, 5), generator=generator)
    return (centres[labels] + torch.randn(pictures, 5, 5, 12, generator=generator)).movedim(-1, 1)


class LocalPictures:
    """Random maps in the place of pictures, as PseudoLabels and final_centroids ask for them; ``asked`` counts them."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        length = sum(channels * height * width for channels, height, width in SHAPES)
        centres = torch.randn(4, length, generator=torch.Generator().manual_seed(1))
        noise = torch.randn(5 * PICTURES, length, generator=torch.Generator().manual_seed(2))
        self.maps = centres[torch.arange(5 * PICTURES) % 4] + 0.7 * noise
        self.asked = 0

    def __len__(self) -> int:
        return PICTURES

    def load(self, rows):
        for index in rows:
            self.asked += len(index)
            yield index, self.maps[index]


def cluster(rank: int, world: int, folder: str) -> None:
    """The clustering alone, an epoch of pseudo-labels, and the final centroids."""
    join(rank, world, folder)
    fabric = new_fabric("fp32")
    processes = RowsOfAll() if world > 1 else None
    results: dict[str, object] = {}
    for name, options in CASES.items():
        clustering = PiCIEClustering(5, init_batches=3, random_state=4, processes=processes, **options)
        for batch, pictures in enumerate((4, 7, 1, 5, 1, 6)):  # of some batches a process has no picture
            if batch == 2:
                results[f"{name}, kept"] = sum(
                    rows.numel() // 12 for rows in clustering.state_dict()["_start"]
                )
            clustering.update(maps(batch, pictures)[rank::world])
        results[name] = [clustering.cluster_centers_, clustering.counts_, clustering.loss_]
    recipe = C2LRecipe.preset(
        "photos", size=32, width=8, heads=2, atoms=4, clusters=4, test_clusters=4, cluster_batch=4,
        init_batches=2, init_pixels=60, batch=2, attention_stride=1, suppressed=0.3, map_stride=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = C2L(recipe, "c2l", SHAPES)
    pictures = LocalPictures()
    views = KeptViews(pictures.maps[: 4 * PICTURES], pictures, recipe)
    figures: list[dict[str, float]] = []
    labels = PseudoLabels(fabric, model, pictures, 3, lambda step, f: figures.append(f), views)
    labels.renew(1)
    results["epoch"] = [labels.labels, labels.centroids, labels.weight]
    results["figures"] = figures
    results["step"] = [labels.batch, labels.steps_per_epoch]
    results["final"] = final_centroids(fabric, model, pictures, 3)
    results["asked"] = pictures.asked
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank)
    norm.running_var.fill_(1 + 2 * rank)
    if processes is not None:
        average_statistics(torch.nn.Sequential(norm), processes)
    results["norm"] = [norm.running_mean, norm.running_var]
    torch.save(results, Path(folder, f"{rank}.pt"))
    fabric.barrier()
    if world > 1:
        torch.distributed.destroy_process_group()


def announced(recipe: C2LRecipe, pictures: int) -> SimpleNamespace:
    """The bytes that an epoch's clustering of random pictures really keeps: of the starts, labels and features."""
    torch.manual_seed(0)
    model = C2L(recipe)
    fabric = new_fabric("fp32")
    kept = SimpleNamespace(start=0, features=0, labels=0)
    images = torch.rand(pictures, 3, recipe.size, recipe.size)

    class Loaded:
        device = torch.device("cpu")

        def __len__(self) -> int:
            return pictures

        def load_images(self, rows):
            return ((index, images[index]) for index in rows)

    labels = PseudoLabels(fabric, model, Loaded(), 0, lambda step, figures: None)
    update, keep, starts = PiCIEClustering.update, PiCIEClustering._keep, {}

    def updated(self, features: Tensor) -> None:
        kept.features = max(kept.features, features.untyped_storage().nbytes())
        update(self, features)

    def took(self, features: Tensor) -> None:
        keep(self, features)
        starts[id(self)] = sum(rows.untyped_storage().nbytes() for rows in self._start)
        kept.start = max(kept.start, sum(starts.values()))

    PiCIEClustering.update, PiCIEClustering._keep = updated, took
    try:
        labels.renew(0)
    finally:
        PiCIEClustering.update, PiCIEClustering._keep = update, keep
    kept.labels = labels.labels.nbytes
    return kept
