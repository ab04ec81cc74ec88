"""Training batches of sounds with the features of pictures from their scenes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cmx_fast.data.scene_data import SceneData
from cmx_fast.data.upload import upload

Batch = dict[str, Tensor]


class SoundBatches:
    """Epochs of "wave" (B, samples) and "picture" (B, D), each scene once with one of its moments; the same for a seed.

    Args:
        features: (P, D) of every picture of ``data``, of broken ones NaN; their scenes are left out.
        rank, world: this process's share of each batch of ``batch * world``.
    """

    def __init__(
        self,
        data: SceneData,
        features: Tensor,
        batch: int,
        seed: int,
        device: torch.device | str,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.data, self.batch, self.seed, self.device = data, batch, seed, device
        self.features = features.unflatten(0, (len(data), data.moments))
        self.scenes = self.features.isfinite().all(2).all(1).nonzero()[:, 0]
        self.rank, self.world = rank, world

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.scenes) // (self.batch * self.world))

    def __call__(self, start: int) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = self.scenes[torch.randperm(len(self.scenes), generator=generator)]
            moments = torch.randint(self.data.moments, (len(self.data),), generator=generator)
            batches = order.split(self.batch * self.world)[skip : self.steps_per_epoch]
            for index, waves in self.data.sounds([rows[self.rank :: self.world] for rows in batches]):
                picture = self.features[index, moments[index]]
                yield {"wave": upload(waves, self.device), "picture": upload(picture, self.device)}
            epoch, skip = epoch + 1, 0
