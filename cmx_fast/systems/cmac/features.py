"""What a trained pair of encoders makes of recordings: features and embeddings, averaged over clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recordings
from cmx_fast.data.transforms.clip_views import CentreCrop
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe

#: Clips that go through the networks at a time.
AT_ONCE = 64


@dataclass(frozen=True)
class Features:
    """One row per recording, float32 on the CPU.

    Attributes:
        video, audio (N, channels): pooled after the last residual block, each clip's divided by its length, averaged.
        video_embedding, audio_embedding (N, embedding): of the heads, likewise.
        labels (N,) int64; index (N,) int64, which recordings these are.
    """

    video: Tensor
    audio: Tensor
    video_embedding: Tensor
    audio_embedding: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Evenly:
    """Evenly spaced clips of some recordings, as the networks take them.

    Attributes:
        clip (B * clips, 3, T, S, S), wave (B * clips, samples), index (B,), start (B * clips,) seconds.
        crop: how the views were cut out of the frames.
    """

    clip: Tensor
    wave: Tensor
    index: Tensor
    start: Tensor
    crop: CentreCrop


def evenly(clips: Clips, recipe: CMACRecipe, rows: Tensor | None = None) -> Iterator[Evenly]:
    """``recipe.clips`` centre crops of each recording, or of those in ``rows``."""
    rows = torch.arange(len(clips)) if rows is None else rows
    for batch in clips.uniform(rows.split(max(1, AT_ONCE // recipe.clips)), clips=recipe.clips):
        crop = CentreCrop(batch["size"].repeat_interleave(recipe.clips, 0), crop=recipe.size)
        wave = batch["wave"].flatten(0, 1) if "wave" in batch else batch["frames"].new_zeros(0)
        yield Evenly(
            crop(batch["frames"].flatten(0, 1)), wave, batch["index"], batch["start"].flatten(), crop
        )


def pooled(maps: Tensor, clips: int) -> Tensor:
    """(B * clips, C, ...) to (B, C): unit vectors of the clips, averaged."""
    unit = F.normalize(maps.float().flatten(2).mean(2), dim=1)
    return unit.unflatten(0, (-1, clips)).mean(1)


@torch.no_grad()
def extract(model: CMAC, clips: Clips, *, mixed: bool = False) -> Features:
    """Features of every recording; ``mixed``: with the networks in bfloat16."""
    recipe, training = model.recipe, model.training
    model.eval()
    found: list[tuple[Tensor, ...]] = []
    for batch in evenly(clips, recipe):
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            video, _, _, video_embedding = model.video(batch.clip)
            audio, _, _, audio_embedding = model.audio(model.spectrogram(batch.wave))
        embeddings = (
            rows.unflatten(0, (-1, recipe.clips)).mean(1) for rows in (video_embedding, audio_embedding)
        )
        rows = (pooled(video, recipe.clips), pooled(audio, recipe.clips), *embeddings, batch.index)
        found.append(tuple(value.cpu() for value in rows))
    model.train(training)
    video, audio, of_video, of_audio, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Features(video, audio, of_video, of_audio, clips.labels[index], index)


@torch.no_grad()
def video_features(model: CMAC, clips: Clips, *, mixed: bool = False) -> tuple[Tensor, Tensor]:
    """Pooled features (N, channels) of the pictures alone and labels (N,), as in :class:`Features`."""
    model.eval()
    found = []
    for batch in evenly(clips, model.recipe):
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            maps = model.video.encoder(batch.clip)
        found.append((pooled(maps, model.recipe.clips).cpu(), clips.labels[batch.index]))
    rows, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows, labels


def open_clips(
    recordings: Recordings, recipe: CMACRecipe, device: torch.device | str, *, audio: bool = True
) -> Clips:
    """The recordings as the recipe wants them."""
    return Clips(
        recordings,
        frames=recipe.frames,
        fps=recipe.fps,
        seconds=recipe.seconds,
        sample_rate=recipe.sample_rate,
        short_side=recipe.short_side,
        audio=audio,
        backend=recipe.backend,
        cache=recipe.cache,
        device=device,
    )
