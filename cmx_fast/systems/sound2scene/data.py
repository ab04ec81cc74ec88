"""Training batches of sounds with the features of pictures from their scenes."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.loaders.upload import upload
from cmx_fast.train.trainable import Batch


class SoundBatches:
    """Batches of "wave" (B, samples) and "picture" (B, D), the same for the same seed.

    An epoch has each scene once, with one of its moments, and the sound around that one where the data has such.

    Args:
        features: (P, D), of every picture of ``data``; NaN for broken ones, whose scenes are left out.
        batch: rows of each process in every step, as processes gather each other's. A sound that can't be read is
            replaced by one that no other process has in that step.
        rank, world: choose this process's share of each batch of ``batch * world``.
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
        usable = self.features.isfinite().all(2).all(1)
        if world > 1 and dist.is_initialized():
            # Scenes that one process could not read none uses: so all count the same steps.
            usable = upload(usable.int(), device)
            dist.all_reduce(usable, dist.ReduceOp.MIN)
        self.scenes = usable.cpu().nonzero()[:, 0]
        self.rank, self.world = rank, world
        if world > 1 and len(self.scenes) < batch * world:
            raise ValueError(
                f"{len(self.scenes)} usable scenes are fewer than a batch of {batch} in each of {world} processes; use "
                "smaller batches"
            )

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
            each = self.data.sounds_each
            sounds = torch.arange(len(self.data)) * each + (moments if each > 1 else 0)
            own_rows = [sounds[rows[self.rank :: self.world]] for rows in batches]
            for index, waves in self.data.sounds(
                own_rows, functools.partial(self._substitutes, order, sounds, epoch)
            ):
                scenes = index // each
                picture = self.features[scenes, moments[scenes]]
                yield {"wave": upload(waves, self.device), "picture": upload(picture, self.device)}
            epoch, skip = epoch + 1, 0

    def _substitutes(self, order: Tensor, sounds: Tensor, epoch: int, batch: Tensor) -> Iterator[int]:
        """The sounds of this process's share of the scenes outside of a step's batch, in an order drawn for each step.

        Raises:
            ValueError: none is left, and other processes wait for as many rows as they have.
        """
        size = self.batch * self.world
        step = int((order == batch[0] // self.data.sounds_each).nonzero()) // size
        outside = torch.cat([order[: step * size], order[(step + 1) * size :]])
        generator = torch.Generator().manual_seed(
            ((self.seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63
        )
        yield from sounds[outside[torch.randperm(len(outside), generator=generator)]][
            self.rank :: self.world
        ].tolist()
        if self.world > 1:
            path, reason = self.data.skipped[-1]
            raise ValueError(f"no scene is left to take the place of {path} ({reason}); use smaller batches")
