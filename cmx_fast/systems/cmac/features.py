"""Features and embeddings of recordings by a trained pair of encoders, averaged over clips."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recordings
from cmx_fast.data.transforms.clip_views import CentreCrop
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe

#: Clips that go through the networks at a time.
BATCH = 64


@dataclass(frozen=True)
class Features:
    """One row per recording, float32 on the CPU.

    Attributes:
        video, audio (N, channels): the last residual block's output, pooled; unit vectors of the clips, averaged.
        video_embedding, audio_embedding: the heads' output, averaged likewise, (N, embedding); to be compared moment by
            moment (``recipe.compare``), the clips' own, one after the other, (N, clips * embedding).
        labels (N,) int64.
        index (N,) int64: the recordings' numbers.
    """

    video: Tensor
    audio: Tensor
    video_embedding: Tensor
    audio_embedding: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class SpacedClips:
    """Evenly spaced clips of some recordings, as the networks take them.

    Attributes:
        clip (B * clips, 3, T, S, S) or maps of its frames (B * clips, C, T, h, w).
        wave (B * clips, samples), index (B,), start (B * clips,) seconds.
        crop: cut the views out of the frames.
    """

    clip: Tensor
    wave: Tensor
    index: Tensor
    start: Tensor
    crop: CentreCrop


def spaced_clips(clips: Clips, recipe: CMACRecipe, rows: Tensor | None = None) -> Iterator[SpacedClips]:
    """Centre crops of ``recipe.clips`` evenly spaced clips of each recording, or of each in ``rows``."""
    rows = torch.arange(len(clips)) if rows is None else rows
    for batch in clips.uniform(rows.split(max(1, BATCH // recipe.clips)), clips=recipe.clips):
        sizes = clips.frame_sizes(batch["index"]) if clips.keeps_maps else batch["size"]
        crop = CentreCrop(sizes.repeat_interleave(recipe.clips, 0), crop=recipe.size, window=recipe.window)
        frames = batch["frames"].flatten(0, 1)
        wave = batch["wave"].flatten(0, 1) if "wave" in batch else batch["frames"].new_zeros(0)
        yield SpacedClips(
            frames.float().transpose(1, 2) if clips.keeps_maps else crop(frames),
            wave,
            batch["index"],
            batch["start"].flatten(),
            crop,
        )


def pooled(maps: Tensor, clips: int) -> Tensor:
    """Pool maps and average the clips' unit vectors: (B * clips, C, ...) to (B, C)."""
    unit = F.normalize(maps.float().flatten(2).mean(2), dim=1)
    return unit.unflatten(0, (-1, clips)).mean(1)


def moments_or_mean(embeddings: Tensor, recipe: CMACRecipe) -> Tensor:
    """The clips' embeddings (B * clips, D) as their mean (B, D), or to compare moments as (B, clips * D)."""
    clips = embeddings.unflatten(0, (-1, recipe.clips))
    return clips.flatten(1) if recipe.compare == "moments" else clips.mean(1)


def chosen(clips: Clips, most: int) -> Tensor:
    """``most`` of the recordings, or all if it is 0: the same ones at every call, in their order, int64."""
    count = len(clips)
    if not 0 < most < count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def gathered(clips: Clips, rows: Tensor, features: Callable[[Tensor], Features]) -> Features:
    """The features of recordings ``rows`` in every process, each of which computes those of its share.

    ``features`` gives those of some rows. Of one process it is that function alone.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features(rows)
    rank, world = dist.get_rank(), dist.get_world_size()
    own = rows[rank::world]
    parts: list[Features | None] = [None] * world
    dist.all_gather_object(parts, features(own) if len(own) else None, group=_patient_group())
    there = [part for part in parts if part is not None]
    order = torch.cat([part.index for part in there]).argsort()
    columns = {
        field.name: torch.cat([getattr(part, field.name) for part in there])[order]
        for field in fields(Features)
    }
    return Features(**columns)


@functools.cache
def _patient_group() -> dist.ProcessGroup:
    """A group whose members wait for hours: the first process may be fitting a classifier to the features before."""
    return dist.new_group(backend="gloo", timeout=timedelta(hours=12))


@torch.no_grad()
def extract(model: CMAC, clips: Clips, *, rows: Tensor | None = None, mixed: bool = False) -> Features:
    """Features of every recording, or of those in ``rows``; with ``mixed`` the networks run in bfloat16."""
    recipe, training = model.recipe, model.training
    model.eval()
    batches: list[tuple[Tensor, ...]] = []
    for batch in spaced_clips(clips, recipe, rows):
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            video, _, _, video_embedding = model.video(batch.clip)
            audio, _, _, audio_embedding = model.audio(model.spectrogram(batch.wave))
        embeddings = (moments_or_mean(rows, recipe) for rows in (video_embedding, audio_embedding))
        values = (pooled(video, recipe.clips), pooled(audio, recipe.clips), *embeddings, batch.index)
        batches.append(tuple(value.cpu() for value in values))
    model.train(training)
    video, audio, video_embedding, audio_embedding, index = map(torch.cat, zip(*batches, strict=True))
    return Features(video, audio, video_embedding, audio_embedding, clips.labels[index], index)


@torch.no_grad()
def video_features(model: CMAC, clips: Clips, *, mixed: bool = False) -> tuple[Tensor, Tensor]:
    """Pooled features (N, channels) of the pictures alone and labels (N,), as in :class:`Features`."""
    model.eval()
    batches = []
    for batch in spaced_clips(clips, model.recipe):
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            maps = model.video.encoder(batch.clip)
        batches.append((pooled(maps, model.recipe.clips).cpu(), clips.labels[batch.index]))
    rows, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return rows, labels


def open_clips(
    recordings: Recordings,
    recipe: CMACRecipe,
    device: torch.device | str,
    *,
    audio: bool = True,
    workers: int | None = None,
) -> Clips:
    """Open recordings with the recipe's numbers; without ``audio`` those that are shorter than a clip are looped."""
    return Clips(
        recordings,
        frames=recipe.frames,
        fps=recipe.fps,
        seconds=recipe.seconds,
        sample_rate=recipe.sample_rate,
        short_side=recipe.short_side,
        audio=audio,
        loop=not audio,
        backend=recipe.backend,
        cache=recipe.cache and not recipe.frame_channels,
        device=device,
        workers=workers,
    )
