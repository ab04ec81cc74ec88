"""Checkpoints on disk: written whole or not at all, read without running what they hold."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

#: Stored in every file; raised when the contents change meaning.
FORMAT = 1


def save(file: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; a crash leaves the old file or the new one, never half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    torch.save({"format": FORMAT, **state}, partial)
    os.replace(partial, file)


def load(file: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; only tensors and plain values are unpickled.

    Raises:
        ValueError: not such a file, or one of another format.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{file} has format {found!r}; this version reads format {FORMAT}")
    return state
