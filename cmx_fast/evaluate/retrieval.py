"""Recall at K between two modalities, by space label, in the shape of the CSIR paper's table 2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from cmx_fast._extras import require
from cmx_fast.evaluate.summary import Spread, mean_and_spread, new_table, percent

DIRECTIONS = {"sir": "Speech-to-image (SIR)", "isr": "Image-to-speech (ISR)"}
GROUPS = ("indoor", "outdoor", "total")
RANKS = (1, 5)

#: recalls[direction][group]["R@1"]: a fraction, or None where the group has no query.
Recalls = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Embeddings:
    """The held-out pairs in the common space: every image of the split, and every utterance.

    Attributes:
        image (P, D), speech (U, D): float32, any length (the cosine ranks them).
        image_space (P,), speech_space (U,): int64 labels.
        image_indoor (P,), speech_indoor (U,): int8, 1 indoors, 0 outdoors, -1 where the data do not say.
        speech_pair (U,): int64, the pair that the utterance belongs to, i.e. its own image.
    """

    image: Tensor
    speech: Tensor
    image_space: Tensor
    speech_space: Tensor
    image_indoor: Tensor
    speech_indoor: Tensor
    speech_pair: Tensor


def rank(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """The k nearest gallery rows of each query by cosine, best first: (Q, D), (G, D) -> (Q, min(k, G)) int64.

    Exact search by faiss (IndexFlatIP on normalised rows).

    Raises:
        MissingExtraError: faiss is not installed; names the extra.
        ValueError: an embedding is not finite.
    """
    faiss = require("faiss", "cpu")
    for name, rows in (("queries", queries), ("gallery", gallery)):
        if not torch.isfinite(rows).all():
            raise ValueError(f"{name} has embeddings that are not finite; the model has diverged")
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(F.normalize(gallery.float(), dim=1).cpu().contiguous().numpy())
    _, nearest = index.search(
        F.normalize(queries.float(), dim=1).cpu().contiguous().numpy(), min(k, len(gallery))
    )
    return torch.from_numpy(nearest)


def recall_at_one(queries: Tensor, gallery: Tensor) -> float:
    """The share of queries whose nearest gallery row by cosine is their own."""
    return float((rank(queries, gallery, 1)[:, 0] == torch.arange(len(queries))).double().mean())


def hits(ranked: Tensor, gallery_labels: Tensor, query_labels: Tensor) -> Tensor:
    """(Q, K) bool: True where one of the first 1..K answers has the query's label."""
    return (gallery_labels[ranked] == query_labels[:, None]).cummax(dim=1).values


def recalls(e: Embeddings, images: Tensor | None = None) -> Recalls:
    """R@1 and R@5 in both directions, for indoor, outdoor and all queries.

    A hit has an answer from the query's space among the first K; repeated gallery entries stay in (the paper's
    protocol, as far as its numbers tell). ``images`` (int64) restricts the image gallery, e.g. to
    :func:`distinct_images`.
    """
    gallery = torch.arange(len(e.image)) if images is None else images
    k = max(RANKS)
    ranked = {
        "sir": (
            hits(rank(e.speech, e.image[gallery], k), e.image_space[gallery], e.speech_space),
            e.speech_indoor,
        ),
        "isr": (hits(rank(e.image, e.speech, k), e.speech_space, e.image_space), e.image_indoor),
    }
    result: Recalls = {}
    for direction, (hit, indoor) in ranked.items():
        masks = {"indoor": indoor == 1, "outdoor": indoor == 0, "total": indoor > -2}
        result[direction] = {
            group: {
                f"R@{r}": float(hit[mask][:, min(r, hit.shape[1]) - 1].double().mean())
                if mask.any()
                else None
                for r in RANKS
            }
            for group, mask in masks.items()
        }
    return result


def chance(e: Embeddings) -> float:
    """R@1 of a random ranking, in both directions: the share of image-utterance couples of one space."""
    return float((e.speech_space[:, None] == e.image_space[None, :]).double().mean())


def distinct_images(files: Sequence[Path]) -> Tensor:
    """Indices of the first of each set of byte-identical files, int64: a gallery without repetitions."""
    first: dict[str, int] = {}
    for i, file in enumerate(files):
        first.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), i)
    return torch.tensor(sorted(first.values()))


def spread(results: Sequence[Recalls]) -> dict[str, dict[str, dict[str, Spread | None]]]:
    """Mean and sample standard deviation over the seeds of every number (0 for one seed)."""
    names = [f"R@{rank}" for rank in RANKS]
    return {
        d: {
            g: {name: mean_and_spread(seed[d][g][name] for seed in results) for name in names} for g in GROUPS
        }
        for d in DIRECTIONS
    }


def table(models: Mapping[str, Sequence[Recalls]], title: str) -> Table:
    """The paper's table for a terminal: percent, mean and spread over the seeds, a block per direction."""
    result = new_table(title, [f"{group}\nR@{r}" for group in GROUPS for r in RANKS])
    for direction, name in DIRECTIONS.items():
        result.add_section()
        result.add_row(f"[bold]{name.split(' ')[-1].strip('()')}[/bold]")
        for model, seeds in models.items():
            cells = spread(seeds)[direction]
            result.add_row(
                model, *[percent(cells[g][f"R@{r}"], len(seeds) > 1) for g in GROUPS for r in RANKS]
            )
    return result
