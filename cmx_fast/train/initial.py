"""Initial weights that follow from a seed alone, so that a resumed run starts its stages as a straight one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

#: A module, or a tuple of modules that are built together.
Built = TypeVar("Built")


def initialised(seed: int, build: Callable[[], Built]) -> Built:
    """Call ``build`` after seeding the global generator: the random weights follow from ``seed`` alone.

    A resumed run loads the stages that a straight one trains, which leaves the generator elsewhere; so every module of
    every stage is built here. The rows of an ablation share the seed: the networks that they share start alike.
    """
    torch.manual_seed(seed)
    return build()
