"""Training batches of pictures: two views of each, or a picture of an instance's neighbourhood."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.transforms.picture_views import Views
from cmx_fast.evaluate import retrieval
from cmx_fast.train.trainable import Batch


class ViewBatches:
    """Batches of "view0" and "view1", (B, 3, S, S) in [0, 1]: two moments of a scene, or one, cropped and recoloured.

    Args:
        hue: hues turn by up to this share of the circle. Where colour alone tells the scenes of a batch apart, shapes
            are not learnt unless it turns by any angle, 0.5; but then colour is forgotten.
    """

    SMALLEST_CROP, JITTER = 0.6, 0.4

    def __init__(self, data: SceneData, batch: int, seed: int, device: torch.device | str, *, hue: float):
        self.data, self.seed, self.device, self.hue = data, seed, device, hue
        self.batch = min(batch, len(data))
        if self.batch < batch:
            print(f"batches of {self.batch} instead of {batch}: there are no more scenes", file=sys.stderr)

    def __call__(self, start: int) -> Iterator[Batch]:
        steps_per_epoch = len(self.data) // self.batch
        epoch, skip = divmod(start, steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            scenes = torch.randperm(len(self.data), generator=generator)
            moments = torch.rand(len(scenes), self.data.moments, generator=generator).argsort(1)
            first, second = moments[:, 0], moments[:, -1]
            numbers = torch.stack([scenes * self.data.moments + m for m in (first, second)], 1)
            batches = [rows.flatten() for rows in numbers.split(self.batch)[skip:steps_per_epoch]]
            for index, pictures in self.data.pictures(batches):
                yield self._views(index, pictures, epoch)
            epoch, skip = epoch + 1, 0

    def _views(self, index: Tensor, pictures: Tensor, epoch: int) -> Batch:
        images = upload(pictures, self.device).float() / 255
        views = {}
        # A scene that breaks loses both of its pictures, so they still alternate.
        for name, k in (("view0", 0), ("view1", 1)):
            change = Views(
                index[k::2],
                seed=self.seed,
                epoch=2 * epoch + k,
                jitter=self.JITTER,
                hue=self.hue,
                smallest_crop=self.SMALLEST_CROP,
                device=self.device,
            )
            views[name] = change.photometric(change.geometric(images[k::2]), 1)
        return views


class NeighbourBatches:
    """Batches of "instance" (B, D), a picture's unit features, and "picture" (B, 3, S, S) in [-1, 1], its neighbour.

    Instances are drawn uniformly, and of each one of the ``neighbours`` nearest other pictures by cosine. Half of the
    pictures are mirrored.

    Args:
        features: (P, D), of every picture; NaN for broken ones.
        mirrored: (P, D), of the mirrored pictures, which half of the instances get; None: no picture is mirrored.
        batch: pictures of all processes together.
        rank, world: choose this process's share of each batch.

    Raises:
        ValueError: not more usable pictures than neighbours.
    """

    def __init__(
        self,
        data: SceneData,
        features: Tensor,
        mirrored: Tensor | None,
        neighbours: int,
        batch: int,
        seed: int,
        device: torch.device | str,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.data, self.batch, self.seed, self.device = data, batch, seed, device
        self.own = slice(rank, None, world)
        usable = features.isfinite().all(1)
        if mirrored is not None:
            usable &= mirrored.isfinite().all(1)
        self.usable = usable.nonzero()[:, 0]
        if len(self.usable) <= neighbours:
            raise ValueError(
                f"{len(self.usable)} pictures are too few for {neighbours} neighbours; --set neighbours=..."
            )
        self.features, self.mirrored = features, mirrored
        rows = features[self.usable]
        nearest = retrieval.rank(rows, rows, neighbours + 1)
        self.nearest = _without_own(nearest, torch.arange(len(rows))).int()

    def __call__(self, start: int) -> Iterator[Batch]:
        pending: deque[Draw] = deque()

        def drawn_pictures() -> Iterator[Tensor]:
            for step in itertools.count(start):
                pending.append(self._draw(step))
                yield pending[-1].picture

        for index, pictures in self.data.pictures(drawn_pictures()):
            drawn = pending.popleft()
            while not torch.isin(index, drawn.picture).all():  # none of that batch's pictures could be read
                drawn = pending.popleft()
            kept = torch.isin(drawn.picture, index)
            yield self._batch(drawn, kept, pictures)

    def _batch(self, drawn: Draw, kept: Tensor, pictures: Tensor) -> Batch:
        instance = self.features[drawn.instance]
        if self.mirrored is not None:
            instance = torch.where(drawn.mirrored[:, None], self.mirrored[drawn.instance], instance)
            pictures = torch.where(drawn.flipped[kept][:, None, None, None], pictures.flip(3), pictures)
        return {
            "instance": upload(F.normalize(instance[kept], dim=1), self.device),
            "picture": upload(pictures, self.device).float() / 127.5 - 1,
        }

    def _draw(self, step: int) -> Draw:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        instance = torch.randint(len(self.usable), (self.batch,), generator=generator)
        neighbour = torch.randint(self.nearest.shape[1], (self.batch,), generator=generator)
        mirrored, flipped = torch.rand(2, self.batch, generator=generator) < 0.5
        picture = self.usable[self.nearest[instance, neighbour].long()]
        return Draw(self.usable[instance][self.own], mirrored[self.own], picture[self.own], flipped[self.own])


@dataclass(frozen=True)
class Draw:
    """A batch by numbers, (B,) each.

    Attributes:
        instance: numbers of pictures; mirrored: True where the mirrored picture's features are taken.
        picture: a neighbour of each; flipped: True where it is mirrored.
    """

    instance: Tensor
    mirrored: Tensor
    picture: Tensor
    flipped: Tensor


def _without_own(nearest: Tensor, self_index: Tensor) -> Tensor:
    """Take each row's own number out of its nearest (P, K + 1), or the farthest where its own is not among them."""
    own = nearest == self_index[:, None]
    own[:, -1] |= ~own.any(1)
    return nearest[~own].view(len(nearest), -1)
