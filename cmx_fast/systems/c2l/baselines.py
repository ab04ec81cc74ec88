"""What C2L has to beat without training a network, and the ceiling of a classifier with masks.

Every row counts the held-out pixels of its clusters in each class, and is read as C2L's own clusters are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.cluster import KMeans
from cmx_fast.evaluate import segmentation
from cmx_fast.networks.fpn import FPN, Pyramid, even, unpack
from cmx_fast.systems.c2l.data import Pictures
from cmx_fast.systems.c2l.recipe import C2LRecipe

#: The baselines with their names in the report and in tables.
BASELINES = {
    "largest": ("all of the largest class", "largest class"),
    "place": ("k-means of place", "place"),
    "colour": ("k-means of colour and place", "colour, place"),
    "frozen": ("k-means of the first encoder's maps", "encoder's k-means"),
    "probe": ("linear classifier of the first encoder's maps, trained with masks", "with masks"),
}
#: Pixels of the training pictures that are clustered, or that the classifier learns from.
SAMPLE = 60_000
#: Edge of the grid on which colours are clustered, in pixels per cell.
CELL = 4
#: Steps of the classifier's optimiser, L-BFGS on all of the sample.
PROBE_STEPS = 60


@dataclass
class Source:
    """The features of a baseline's pixels, (B, D, h, w) of a batch.

    Attributes:
        features: from pictures (B, 3, S, S), or from what the networks see.
        of_pictures: True if from pictures.
    """

    features: Callable[[Tensor], Tensor]
    of_pictures: bool

    def load(self, pictures: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices (B,) and features of all pictures."""
        rows = torch.arange(len(pictures)).split(32)
        for index, batch in pictures.load_images(rows) if self.of_pictures else pictures.load(rows):
            yield index, self.features(batch)


@torch.no_grad()
def baseline_counts(
    name: str, encoder: FPN | Pyramid, recipe: C2LRecipe, train: Pictures, test: Pictures, seed: int
) -> Tensor:
    """Count the held-out pixels of each cluster in each class, (K, classes) int64; the classifier's classes likewise.

    Args:
        name: a key of BASELINES.
        encoder: before any training; for "frozen" and "probe".
        seed: of k-means and of the sampled pixels.
    """
    classes = len(test.class_names)
    if name == "largest":
        source = Source(lambda images: images[:, :1, :1, :1], of_pictures=True)
        return _count(source, test, torch.zeros(1, 1), torch.zeros(1), classes)
    if name in ("place", "colour"):
        source = Source(_place if name == "place" else _colour_and_place, of_pictures=True)
    else:
        source = Source(functools.partial(encoder_features, encoder), of_pictures=False)
    if name == "probe":
        weight, bias = _probe(*_sample(source, train, seed, masks=True), classes)
        return _count(source, test, weight, bias, classes)
    rows, _ = _sample(source, train, seed)
    scale = rows.std(0).clamp_min(1e-6) if source.of_pictures else rows.new_ones(rows.shape[1])
    clusters = KMeans(recipe.test_clusters, n_init=1, random_state=seed).fit(rows / scale)
    centroids = clusters.cluster_centers_
    # The nearest centroid is that of the largest 2 c.x - |c|^2.
    return _count(source, test, 2 * centroids / scale, -centroids.square().sum(1), classes)


def encoder_features(encoder: FPN | Pyramid, batch: Tensor) -> Tensor:
    """The encoder's maps one behind the other on the models' grid, or the finest one's: unit vectors (B, D, h, w).

    A ResNet's maps of stride 4 are left out: they tell edges and colours.
    """
    if isinstance(encoder, Pyramid):
        maps, side = unpack(batch, encoder.shapes), (encoder.side, encoder.side)
    else:
        maps = encoder.activations(batch)[1:]
        side = maps[0].shape[2], maps[0].shape[3]
    levels = [F.interpolate(even(x.float()), side, mode="bilinear") for x in maps]
    return F.normalize(torch.cat(levels, 1), dim=1)


def _place(images: Tensor) -> Tensor:
    height, width = (side // CELL for side in images.shape[2:])
    down = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(height, width)
    across = torch.linspace(-1, 1, width, device=images.device).expand(height, width)
    return torch.stack([down, across]).expand(len(images), 2, height, width)


def _colour_and_place(images: Tensor) -> Tensor:
    return torch.cat([F.avg_pool2d(images, CELL), _place(images)], 1)


def _sample(source: Source, pictures: Pictures, seed: int, masks: bool = False) -> tuple[Tensor, Tensor]:
    """Features (n, D) of pixels drawn evenly from all pictures, with ``masks`` also their classes (n,)."""
    each = -(-SAMPLE // len(pictures))
    generator = torch.Generator().manual_seed(seed)
    rows, classes = [], []
    for index, x in source.load(pictures):
        drawn = (
            torch.rand(len(x), x.shape[2] * x.shape[3], generator=generator).argsort(1)[:, :each].to(x.device)
        )
        picked = x.flatten(2).gather(2, drawn[:, None].expand(-1, x.shape[1], -1))
        rows.append(picked.transpose(1, 2).flatten(0, 1))
        if masks:
            stack = pictures.masks(index).to(x.device)
            small = F.interpolate(stack[:, None].float(), x.shape[2:], mode="nearest").long()
            classes.append(small.flatten(1).gather(1, drawn).flatten())
    return torch.cat(rows), torch.cat(classes) if masks else torch.empty(0, dtype=torch.int64)


@torch.enable_grad()
def _probe(rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights (classes, D) and biases of a softmax classifier by maximum likelihood, barely penalised."""
    scale = rows.std(0).clamp_min(1e-6)
    weight = torch.zeros(classes, rows.shape[1], device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, device=rows.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(rows / scale, weight, bias), labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (weight / scale).detach(), bias.detach()


def _count(source: Source, pictures: Pictures, weight: Tensor, bias: Tensor, classes: int) -> Tensor:
    """Give each pixel to the row of ``weight`` (K, D) and ``bias`` (K,) with the largest enlarged logit, and count."""
    counts = torch.zeros(len(weight), classes, dtype=torch.int64)
    size = (pictures.dataset.size, pictures.dataset.size)
    for index, x in source.load(pictures):
        logits = F.conv2d(x, weight.to(x)[:, :, None, None], bias.to(x))
        labels = F.interpolate(logits, size, mode="bilinear").argmax(1).cpu()
        counts += segmentation.confusion(labels, pictures.masks(index), *counts.shape)
    return counts
