"""Initial weights that follow from a seed alone, so that a resumed run starts its stages as a straight one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

#: A module, or a tuple of modules that are built together.
Made = TypeVar("Made")


def initialised(seed: int, make: Callable[[], Made]) -> Made:
    """What ``make`` builds, its random weights drawn from ``seed`` and from nothing that ran before.

    A resumed run loads the stages that a straight one trains, which leaves the global generator elsewhere. Every module
    of every stage is built here. The rows of an ablation share the seed, so what they have in common starts alike.
    """
    torch.manual_seed(seed)
    return make()
