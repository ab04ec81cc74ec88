"""Features of all pictures by a fixed encoder, kept in a file and computed anew when that is stale."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.weights import load, save

#: Pictures per batch.
BATCH = 64


def picture_features(
    encoder: PictureEncoder,
    data: SceneData,
    device: torch.device | str,
    file: Path | None = None,
    *,
    flipped: bool = False,
) -> Tensor:
    """The encoder's features of every picture, float32 (P, width); NaN for broken ones.

    They are read from ``file`` if it holds the features of this encoder and these pictures: a hash of the weights and
    of every picture's name, size, time of change and moments tells. Else they are computed, and written to ``file``.

    Args:
        flipped: mirror the pictures.
    """
    fingerprint = _fingerprint(encoder, data, flipped)
    if file is not None and file.exists():
        stored = _stored(file, fingerprint)
        if stored is not None:
            return stored
    features = torch.full((len(data) * data.moments, encoder.width), math.nan)
    encoder.to(device)
    batches = torch.arange(len(features)).split(BATCH)
    loaded: Iterator[tuple[Tensor, Tensor]] = track(
        data.pictures(batches), "features", total=len(batches), disable=not sys.stderr.isatty()
    )  # type: ignore[assignment]
    for index, pictures in loaded:
        batch = pictures.to(device).float() / 255
        features[index] = encoder(batch.flip(3) if flipped else batch).float().cpu()
    if file is not None:
        save(file, {"fingerprint": fingerprint, "features": features})
    return features


def _stored(file: Path, fingerprint: str) -> Tensor | None:
    """The file's features; None, with a message, if they belong to others or can't be read."""
    try:
        state = load(file)
    except ValueError as error:
        print(f"{error}; computing the features anew", file=sys.stderr)
        return None
    if state.get("fingerprint") == fingerprint:
        return state["features"]
    print(
        f"{file} holds features of other pictures or of another encoder; computing them anew", file=sys.stderr
    )
    return None


def _fingerprint(encoder: PictureEncoder, data: SceneData, flipped: bool) -> str:
    digest = hashlib.sha256(f"{encoder.kind} {data.size} {data.moments} {flipped}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    for number, entry in enumerate(data.entries):
        status = entry.picture.stat() if entry.picture.exists() else None
        state = (status.st_size, status.st_mtime_ns) if status else None
        times = data.times(number) if entry.media else None
        digest.update(json.dumps([entry.name, str(entry.picture), state, times]).encode())
    return digest.hexdigest()
