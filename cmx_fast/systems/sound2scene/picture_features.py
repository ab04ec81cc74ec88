"""Features of all pictures by a fixed encoder, kept in a file and computed anew when that is stale."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.train.frozen_features import frozen_rows, rows_key

#: Pictures per batch.
BATCH = 64


def picture_features(
    encoder: PictureEncoder | VisualEncoder,
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
    count = len(data) * data.moments
    times = [data.times(number) if entry.media else None for number, entry in enumerate(data.entries)]
    settings = [encoder.fingerprint(), data.size, data.stretch, data.moments, flipped, times]
    encoder.to(device)

    @torch.no_grad()
    def compute() -> Iterator[tuple[Tensor, Tensor]]:
        batches = torch.arange(count).split(BATCH)
        loaded: Iterable[tuple[Tensor, Tensor]] = track(
            data.pictures(batches), "features", total=len(batches), disable=not sys.stderr.isatty()
        )
        for index, pictures in loaded:
            batch = pictures.to(device).float() / 255
            yield index, encoder(batch.flip(3) if flipped else batch).float()

    key = rows_key(settings, (entry.picture for entry in data.entries))
    return frozen_rows(file, key, (count, encoder.width), compute)
