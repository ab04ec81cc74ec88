"""Fast kernels and training for audio-visual contrastive learning.

Its subpackages are imported when they are first named: ``cmx_fast.losses.ClipLoss`` works after ``import cmx_fast``,
which itself imports nothing, not even torch. A program of torch.export that holds these operators needs
``import cmx_fast.ops`` before it is loaded.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmx_fast import (
        cluster,
        data,
        distributed,
        evaluate,
        losses,
        networks,
        nn,
        ops,
        patch,
        reference,
        search,
        simulate,
        systems,
        train,
    )

__all__ = [
    "cluster",
    "data",
    "distributed",
    "evaluate",
    "losses",
    "networks",
    "nn",
    "ops",
    "patch",
    "reference",
    "search",
    "simulate",
    "systems",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"cmx_fast.{name}")
    raise AttributeError(f"module 'cmx_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
