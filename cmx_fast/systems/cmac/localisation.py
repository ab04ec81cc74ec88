"""Attention maps against the true place of the sounding object, which ``positions.csv`` beside the data tells."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.lists import printable, read_table
from cmx_fast.systems.cmac.features import SpacedClips

POSITIONS = "positions.csv"


class Positions:
    """Centre and radius of the sounding object in every frame of simulated recordings.

    Raises:
        ValueError: a recording that the file does not have.
    """

    def __init__(self, file: Path, clips: Clips):
        tracks: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for row in read_table(file, ("name", "x", "y", "radius")):
            tracks[printable(row["name"])].append((row.real("x"), row.real("y"), row.real("radius")))
        missing = [entry.name for entry in clips.entries if entry.name not in tracks]
        if missing:
            raise ValueError(f"{file} has no {missing[0]}, nor {len(missing) - 1} more of the recordings")
        self.clips = clips
        self.tracks = [torch.tensor(tracks[entry.name]) for entry in clips.entries]

    def masks(self, batch: SpacedClips, times: int, frames: int, fps: float) -> Tensor:
        """The object's pixels during each of ``times`` steps of a map, (B * clips, times, S, S) bool."""
        count = len(batch.clip)
        per_step = frames // times
        rows = batch.index.repeat_interleave(count // len(batch.index)).tolist()
        seconds = batch.start[:, None] + torch.arange(times * per_step) / fps
        shares, radii = [], []
        for row, moments in zip(rows, seconds, strict=True):
            track, media = self.tracks[row], self.clips.media[row]
            frame = (moments * media.fps).round().long().clamp(0, len(track) - 1)
            shares.append(track[frame, :2] / torch.tensor([media.width, media.height]))
            radii.append(track[frame, 2] / media.height)
        crop, side = batch.crop, batch.crop.crop
        centres = crop.places(torch.stack(shares)) * side  # (B * clips, F, 2)
        scale = crop.sizes[:, 0] / crop.side * side
        radius = torch.stack(radii) * scale[:, None]
        grid = torch.arange(side) + 0.5
        x, y = (grid - centres[..., axis, None] for axis in (0, 1))
        inside = x.square()[..., None, :] + y.square()[..., :, None] <= radius.square()[..., None, None]
        return inside.unflatten(1, (times, per_step)).any(2)


def peaks(maps: Tensor, side: int) -> Tensor:
    """The highest pixel of each map enlarged to side x side: (N, T, h, w) to (N, T) int64, in the flat picture."""
    enlarged = F.interpolate(maps.float().cpu(), (side, side), mode="bilinear")
    return enlarged.flatten(2).argmax(2)


def hits(maps: Tensor, masks: Tensor) -> Tensor:
    """(N, T) bool: True where a map's peak lies in the mask."""
    return masks.flatten(2).gather(2, peaks(maps, masks.shape[-1])[..., None])[..., 0]
