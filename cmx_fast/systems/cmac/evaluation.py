"""Measures CMAC and the rows of its ablation on held-out recordings: retrieval, linear classification, localisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.evaluate import linear
from cmx_fast.evaluate.retrieval import recall_at_one
from cmx_fast.evaluate.summary import SeedScores, percent
from cmx_fast.systems.cmac.features import Features, SpacedClips, spaced_clips
from cmx_fast.systems.cmac.localisation import Positions, hits
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.options import NAMES
from cmx_fast.systems.cmac.recipe import CMACRecipe


@dataclass(frozen=True)
class Example:
    """A held-out clip: its view (3, T, S, S), its spectrogram (257, frames) and the maps that CMAC.attend gives."""

    name: str
    clip: Tensor
    spectrogram: Tensor
    maps: dict[str, Tensor]


#: The measures of a model, all shares of 1, with their titles.
MEASURES = {
    "audio_to_video": "A→V R@1",
    "video_to_audio": "V→A R@1",
    "video_linear": "video linear",
    "audio_linear": "audio linear",
    "guided": "guided peak",
    "predicted": "predicted peak",
}
#: The recipe's ways to compare two recordings, in words.
COMPARED = {"mean": "cosine of mean embeddings", "moments": "mean cosine of the embeddings of each moment"}
#: Recordings in the report.
EXAMPLES = 6


def new_model(name: str, recipe: CMACRecipe) -> CMAC:
    """A model of that name with fresh weights; "scratch" is CMAC before any training."""
    return CMAC(recipe, "cmac" if name == "scratch" else name)


@torch.no_grad()
def pointing(
    model: CMAC, clips: Clips, positions: Positions, rows: Tensor, *, mixed: bool
) -> dict[str, float]:
    """The share of "guided" and of "predicted" maps of recordings ``rows`` whose peak lies on the sounding object.

    "chance" is the object's share of the view.
    """
    recipe, training = model.recipe, model.training
    model.eval()
    hit_lists: dict[str, list[Tensor]] = {"guided": [], "predicted": [], "chance": []}
    for batch in spaced_clips(clips, recipe, rows):
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
    split: str
    compare: str  # the recipe's
    scores: SeedScores
    chance: dict[str, float]  # by measure
    baseline: dict[str, float] = field(
        default_factory=dict
    )  # by measure, where frames are seen by a frozen encoder
    examples: dict[str, list[Example]] = field(default_factory=dict)  # by model, of the first seed

    @property
    def measures(self) -> dict[str, str]:
        """The measures that the data allow."""
        return {name: title for name, title in MEASURES.items() if name in self.scores.measures}

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocol": {
                "split": self.split,
                "retrieval": f"{COMPARED[self.compare]}, a recording's own counterpart among all held-out ones",
                "linear": "linear SVM on pooled features, trained on the training split, by class",
                "peak": "the highest pixel of the audio-guided or predicted map lies on the sounding object",
            },
            "recordings": self.recordings,
            "chance": self.chance,
            "frozen frames and log filterbanks": self.baseline,
            **self.scores.as_dict(list(self.measures)),
        }


def score(train: Features | None, test: Features) -> dict[str, float]:
    """Retrieval among the held-out recordings, and with features of training ones linear classification.

    Where the training recordings have but one class, nothing is classified.
    """
    figures = {
        "audio_to_video": recall_at_one(test.audio_embedding, test.video_embedding),
        "video_to_audio": recall_at_one(test.video_embedding, test.audio_embedding),
    }
    if train is not None and len(train.labels.unique()) > 1:
        figures |= {
            "video_linear": linear.accuracy(train.video, train.labels, test.video, test.labels),
            "audio_linear": linear.accuracy(train.audio, train.labels, test.audio, test.labels),
        }
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
        f"{evaluation.recordings} held-out recordings ({evaluation.split}), %",
        {measure: title.replace(" ", "\n") for measure, title in evaluation.measures.items()},
        {name: short for name, (_, short) in NAMES.items()},
    )
    result.add_section()
    if evaluation.baseline:
        cells = (evaluation.baseline.get(measure) for measure in evaluation.measures)
        result.add_row(
            "frozen + CCA", *(percent(None if value is None else (value, 0.0), False) for value in cells)
        )
    result.add_row("chance", *(f"{100 * evaluation.chance[measure]:.1f}" for measure in evaluation.measures))
    return result
