"""Measures CMAC and the rows of its ablation on held-out recordings: retrieval, linear classification, localisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.evaluate import linear
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.evaluate.summary import SeedScores
from cmx_fast.systems.cmac.features import Features, SpacedClips, extract, spaced_clips
from cmx_fast.systems.cmac.localisation import Positions, hits
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe


@dataclass(frozen=True)
class Example:
    """A held-out clip: its view (3, T, S, S), its spectrogram (257, frames) and the maps that CMAC.attend gives."""

    name: str
    clip: Tensor
    spectrogram: Tensor
    maps: dict[str, Tensor]


#: The models in Table 1's order, with their names in the report and in tables.
NAMES = {
    "scratch": ("Random weights", "scratch"),
    "single": ("Single modality", "single"),
    "attention": ("CMAC without L_cl", "w/o L_cl"),
    "contrast": ("CMAC without L_ac", "w/o L_ac"),
    "cmac": ("CMAC", "CMAC"),
}
#: The measures of a model, all shares of 1, with their titles.
MEASURES = {
    "audio_to_video": "A→V R@1",
    "video_to_audio": "V→A R@1",
    "video_linear": "video linear",
    "audio_linear": "audio linear",
    "guided": "guided peak",
    "predicted": "predicted peak",
}
#: Recordings in the report.
EXAMPLES = 6


def new_model(name: str, recipe: CMACRecipe) -> CMAC:
    """A model of that name with fresh weights; "scratch" is CMAC before any training."""
    return CMAC(recipe, "cmac" if name == "scratch" else name)


def recall_at_one(queries: Tensor, gallery: Tensor) -> float:
    """The share of queries whose nearest gallery row by cosine is their own."""
    return float((rank(queries, gallery, 1)[:, 0] == torch.arange(len(queries))).double().mean())


@torch.no_grad()
def pointing(model: CMAC, clips: Clips, positions: Positions, *, mixed: bool) -> dict[str, float]:
    """The share of "guided" and of "predicted" maps whose peak lies on the sounding object.

    "chance" is the object's share of the view.
    """
    recipe, training = model.recipe, model.training
    model.eval()
    hit_lists: dict[str, list[Tensor]] = {"guided": [], "predicted": [], "chance": []}
    for batch in spaced_clips(clips, recipe):
        with torch.autocast(batch.clip.device.type, torch.bfloat16, enabled=mixed):
            maps = model.attend(batch.clip, batch.wave)
        masks = positions.masks(batch, maps["video guided"].shape[1], recipe.frames, recipe.fps)
        for name in ("guided", "predicted"):
            hit_lists[name].append(hits(maps[f"video {name}"], masks).double().flatten())
        hit_lists["chance"].append(masks.double().mean((2, 3)).flatten())
    model.train(training)
    return {name: float(torch.cat(values).mean()) for name, values in hit_lists.items()}


@dataclass
class Evaluation:
    """The figures of the table and the report."""

    recordings: int
    scores: SeedScores
    chance: dict[str, float]  # by measure
    examples: dict[str, list[Example]] = field(default_factory=dict)  # by model, of the first seed

    @property
    def measures(self) -> dict[str, str]:
        """The measures that the data allow."""
        return {name: title for name, title in MEASURES.items() if name in self.scores.measures}

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocol": {
                "retrieval": "cosine of mean embeddings, a recording's own counterpart among all held-out ones",
                "linear": "linear SVM on pooled features, trained on the training split, by class",
                "peak": "the highest pixel of the audio-guided or predicted map lies on the sounding object",
            },
            "recordings": self.recordings,
            "chance": self.chance,
            **self.scores.as_dict(list(self.measures)),
        }


def score(
    model: CMAC, train: Features, clips: Clips, positions: Positions | None, *, mixed: bool
) -> dict[str, float]:
    """Every measure of one model, whose features of the training split are ``train``."""
    test = extract(model, clips, mixed=mixed)
    figures = {
        "audio_to_video": recall_at_one(test.audio_embedding, test.video_embedding),
        "video_to_audio": recall_at_one(test.video_embedding, test.audio_embedding),
        "video_linear": linear.accuracy(train.video, train.labels, test.video, test.labels),
        "audio_linear": linear.accuracy(train.audio, train.labels, test.audio, test.labels),
    }
    if positions is not None:
        figures |= pointing(model, clips, positions, mixed=mixed)
    return figures


@torch.no_grad()
def attention_examples(model: CMAC, clips: Clips, rows: Tensor) -> list[Example]:
    """The middle clip of each recording with its maps, for the report."""
    model.eval()

    def middle_of(batch: SpacedClips) -> Tensor:
        return torch.arange(len(batch.index)) * model.recipe.clips + model.recipe.clips // 2

    views: dict[int, Tensor] = {}
    if clips.keeps_maps:
        for batch in spaced_clips(clips.from_files(), model.recipe, rows):
            views |= zip(batch.index.tolist(), batch.clip[middle_of(batch)].cpu(), strict=True)
    examples = []
    for batch in spaced_clips(clips, model.recipe, rows):
        middle = middle_of(batch)
        clip, wave = batch.clip[middle], batch.wave[middle]
        maps, bands = model.attend(clip, wave), model.spectrogram(wave)
        for i, row in enumerate(batch.index.tolist()):
            examples.append(
                Example(
                    clips.entries[row].name,
                    views[row] if clips.keeps_maps else clip[i].cpu(),
                    bands[i, 0].cpu(),
                    {name: value[i].cpu() for name, value in maps.items()},
                )
            )
    return examples


def table(evaluation: Evaluation) -> Table:
    """Table 1 for a terminal: percent, mean and spread over the seeds."""
    result = evaluation.scores.table(
        f"{evaluation.recordings} held-out recordings, %",
        {measure: title.replace(" ", "\n") for measure, title in evaluation.measures.items()},
        {name: short for name, (_, short) in NAMES.items()},
    )
    result.add_section()
    result.add_row("chance", *(f"{100 * evaluation.chance[measure]:.1f}" for measure in evaluation.measures))
    return result
