"""Training batches of augmented clips, from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.transforms.clip_views import ClipViews
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.train.trainable import Batch


class ClipBatches:
    """Epochs of random clips, the same for the same seed.

    An epoch has each recording once, but for those that don't fill a batch; which these are changes with the epoch.

    Args:
        two_clips: yield "clip2" and "wave2" too, another random clip of each recording.
        rank, world: choose this process's share of each batch of ``batch * world``.
    """

    def __init__(
        self,
        clips: Clips,
        recipe: CMACRecipe,
        batch: int,
        seed: int,
        *,
        two_clips: bool = False,
        rank: int = 0,
        world: int = 1,
    ):
        self.clips, self.recipe, self.batch, self.seed = clips, recipe, batch, seed
        self.draws = 2 if two_clips else 1
        self.rank, self.world = rank, world

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.clips) // (self.batch * self.world))

    def __call__(self, start: int) -> Iterator[Batch]:
        """Endless batches from a step on: "clip" (B, 3, T, S, S), "label" (B,), "index" (B,), and where there is sound
        "wave" (B, samples). Where the clips keep an encoder's maps, "clip" is those, (B, C, T, h, w), not augmented.

        All are on the device. Only where there is one process, "index" stays on the host: there the banks find a
        recording's own keys by it.
        """
        epoch, skip = divmod(start, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.clips), generator=generator).split(self.batch * self.world)
            own_rows = [rows[self.rank :: self.world] for rows in order[skip : self.steps_per_epoch]]
            draws = [
                self.clips.load(own_rows, seed=self.seed, epoch=self.draws * epoch + draw)
                for draw in range(self.draws)
            ]
            for drawn in zip(*draws, strict=True):
                batch: Batch = {}
                for draw, loaded in enumerate(drawn):
                    batch |= self._augment(loaded, self.draws * epoch + draw, "2" if draw else "")
                yield batch
            epoch, skip = epoch + 1, 0

    def _augment(self, loaded: Batch, epoch: int, suffix: str) -> Batch:
        recipe, frames = self.recipe, loaded["frames"]
        if self.clips.keeps_maps:
            clip = frames.float().transpose(1, 2)
        else:
            views = ClipViews(
                loaded["index"],
                loaded["size"],
                seed=self.seed,
                epoch=epoch,
                crop=recipe.size,
                smallest_crop=recipe.smallest_crop,
                jitter=recipe.jitter,
                window=recipe.window,
            )
            clip = views(frames)
        batch = {f"clip{suffix}": clip}
        if "wave" in loaded:
            batch[f"wave{suffix}"] = loaded["wave"]
        if not suffix:
            index = loaded["index"]
            label = upload(self.clips.labels[index], frames.device)
            # Processes exchange it from device to device.
            batch |= {"index": index if self.world == 1 else upload(index, frames.device), "label": label}
        return batch
