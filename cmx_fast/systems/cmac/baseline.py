"""A baseline that trains no network: frozen frames and log filterbanks, mapped into one space in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.evaluate.correlation import best_ridge, correlate
from cmx_fast.evaluate.retrieval import recall_at_one
from cmx_fast.nn import LogFilterbank
from cmx_fast.systems.cmac.features import Features, moments_or_mean, spaced_clips
from cmx_fast.systems.cmac.recipe import CMACRecipe

#: Every so many of the training recordings chooses the ridge.
CHOOSING = 5


@dataclass(frozen=True)
class Statistics:
    """Statistics of every recording's clips: video (N, clips, 2 C), audio (N, clips, 2 bands); index (N,)."""

    video: Tensor
    audio: Tensor
    index: Tensor


def statistics(values: Tensor) -> Tensor:
    """Means and deviations over all but the first two dimensions: (B, C, ...) to (B, 2 C)."""
    deviations, means = torch.std_mean(values.float().flatten(2), 2)
    return torch.cat([means, deviations], 1)


@torch.no_grad()
def measure(clips: Clips, recipe: CMACRecipe, rows: Tensor) -> Statistics:
    """Statistics of the kept maps and of the log filterbanks of recordings ``rows``."""
    bank = LogFilterbank(recipe.sample_rate).to(clips.device)
    parts = [
        (
            statistics(batch.clip).unflatten(0, (-1, recipe.clips)).cpu(),
            statistics(bank(batch.wave)).unflatten(0, (-1, recipe.clips)).cpu(),
            batch.index,
        )
        for batch in spaced_clips(clips, recipe, rows)
    ]
    return Statistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def baseline(
    train: Clips, test: Clips, recipe: CMACRecipe, rows: Tensor, test_rows: Tensor
) -> tuple[Features, Features]:
    """Features of the training and of the held-out recordings, as a model's: its embeddings are the two mappings'.

    The mappings are fitted to the clips of the training recordings alone; a fifth of these chooses the ridge.
    """
    known, held_out = measure(train, recipe, rows), measure(test, recipe, test_rows)
    choosing = torch.arange(len(known.index)) % CHOOSING == 0

    def embeddings(fitted: Tensor, ridge: float, of: Statistics) -> list[Tensor]:
        pairs = correlate(known.video[fitted].flatten(0, 1), known.audio[fitted].flatten(0, 1), ridge=ridge)
        return [
            moments_or_mean(torch.nn.functional.normalize(mapping(part.flatten(0, 1)), dim=1), recipe)
            for mapping, part in zip(pairs, (of.video, of.audio), strict=True)
        ]

    def quality(ridge: float) -> float:
        video, audio = (rows[choosing] for rows in embeddings(~choosing, ridge, known))
        return recall_at_one(audio, video) + recall_at_one(video, audio)

    ridge = best_ridge(quality) if len(choosing) - int(choosing.sum()) > 1 else 1.0
    everything = torch.ones_like(choosing)

    def features(of: Statistics, clips: Clips) -> Features:
        video, audio = embeddings(everything, ridge, of)
        return Features(of.video.mean(1), of.audio.mean(1), video, audio, clips.labels[of.index], of.index)

    return features(known, train), features(held_out, test)
