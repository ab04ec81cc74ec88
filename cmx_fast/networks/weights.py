"""Checkpoints on disk: written whole or not at all, checked by a digest, read without running any code in them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Stored in every file; raised when the contents change meaning.
FORMAT = 1


def save(file: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, with their digest.

    A crash at any byte leaves the old file or the new one, never half of one: the new one is written beside it, reaches
    the disk, and takes its place.

    Raises:
        OSError: the disk is full or the folder can't be written; the old file is untouched.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("wb") as stream:
            torch.save({"format": FORMAT, "digest": digest(state), **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        partial.unlink(missing_ok=True)
        raise OSError(f"{file} could not be written, the one before is untouched: {error}") from error
    sync_folder(file.parent)


def load(file: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; only tensors and plain values are unpickled.

    Raises:
        ValueError: the file is not such a checkpoint, has another format, or has changed since.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ValueError(f"{file} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        stored_format = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{file} has format {stored_format!r}; this version reads format {FORMAT}")
    expected = state.pop("digest", None)
    if expected != digest({name: value for name, value in state.items() if name != "format"}):
        raise ValueError(f"{file} is damaged: its contents are not those that were written")
    return state


def digest(state: Any) -> str:
    """The SHA-256 of tensors and plain values, independent of the file that holds them."""
    hasher = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            hasher.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            if value.numel():
                flat = value.detach().cpu().contiguous().reshape(-1)
                hasher.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            hasher.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                hasher.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            hasher.update(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)}".encode())
            for item in value:
                add(item)
        else:
            hasher.update(repr(value).encode())

    add(state)
    return hasher.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder: a file's new name reaches the disk only with it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(file: Path, text: str) -> None:
    """Write a text as :func:`save` writes a checkpoint."""
    partial = file.with_name(file.name + ".partial")
    try:
        with partial.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{file} could not be written, the one before is untouched: {error}") from error
    sync_folder(file.parent)


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, such as a run's config.

    Raises:
        ValueError: the file holds no JSON, or no object.
    """
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} is not readable JSON: it holds {type(content).__name__}, not names and values"
        )
    return content
