"""Maps contrasted with sequences by all their tokens: the formula as DenseAV's users write it, and ours."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.ops import dense_contrastive

from ..harness.problems import TEMPERATURE, Problem
from ..harness.provider import OURS, Provider, compiled, formula
from ..peers import formulas


@functools.lru_cache(2)
def problem(n: int, d: int, places: int, tokens: int, seed: int = 0) -> Problem:
    """Unit tokens (n, places, d) and (n, tokens, d); an item's have a direction in common with the other side's."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.randn(n, 1, d, generator=generator)
    sides = (item + 2 * torch.randn(n, count, d, generator=generator) for count in (places, tokens))
    image, audio = (F.normalize(side, dim=2) for side in sides)
    return Problem({"image": image, "audio": audio}, ("image", "audio"))


def _arguments(p: Problem) -> tuple:
    return p["image"], p["audio"]


def _eager(image: Tensor, audio: Tensor) -> Tensor:
    logits = formulas.dense_scores(image, audio) / TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _ours(image: Tensor, audio: Tensor) -> Tensor:
    return dense_contrastive(image, audio, temperature=TEMPERATURE)


PROVIDERS: dict[str, dict[str, Provider]] = {
    "dense contrast": {
        "einsum, max, mean": formula(lambda p: _eager(*_arguments(p))),
        "torch.compile of it": compiled(_eager, _arguments),
        OURS: Provider(lambda p: lambda: _ours(*_arguments(p)), lambda p: _eager(*_arguments(p))),
    }
}
