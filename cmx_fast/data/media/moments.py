"""The rules that all decoders share: how long a file plays, which frame is shown when, and how large it becomes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.data.media.files import LONGEST_SIDE, BrokenFileError

#: A frame that begins this much after a moment, in seconds, is taken as shown then: Matroska rounds to milliseconds,
#: and k / 30 in floating point is not pts 512 k.
EPSILON = 6e-4
#: Seconds by which a moment may lie outside a track and still get the frame at that end.
SLACK = 0.1


class BrokenVideoError(BrokenFileError):
    """A video that can't be used."""

    remedy = "repair or remove it (training leaves it out by itself)"


@dataclass(frozen=True)
class Media:
    """The media that a file plays. Moments are seconds on its own clock, the presentation timestamps of its packets.

    Attributes:
        video_seconds, audio_seconds: the length of each track (audio: 0 without).
        fps: frames per second on average, 0 if the file does not say.
        width, height: of the stored frame, in pixels.
        start, seconds: the first moment at which both tracks play, and for how long (the video alone without audio).
    """

    video_seconds: float
    audio_seconds: float
    fps: float
    width: int
    height: int
    start: float
    seconds: float


def address(path: Path) -> str:
    """The file as FFmpeg takes it: the part before a colon in a relative path would be a protocol."""
    return os.path.abspath(path)


def resized(path: Path, width: int, height: int, short_side: int) -> tuple[int, int]:
    """The frame's (width, height) with the shorter side resized to ``short_side``.

    Raises:
        BrokenVideoError: there are no pixels, or the longer side is more than :data:`LONGEST_SIDE` times the shorter.
    """
    if min(width, height) < 1 or max(width, height) > LONGEST_SIDE * min(width, height):
        raise BrokenVideoError(
            path, f"has frames of {width}x{height} pixels, longer than {LONGEST_SIDE} times the shorter side"
        )
    scale = short_side / min(width, height)
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))


def shown(begins: Tensor, end: float, moments: Sequence[float], path: Path) -> Tensor:
    """The number of the frame shown at each moment; frames begin at ``begins`` (sorted) and play until ``end``."""
    wanted = torch.tensor(moments, dtype=torch.float64)
    outside = (wanted < begins[0] - SLACK) | (wanted > end + SLACK)
    if outside.any():
        moment = wanted[outside][0].item()
        raise BrokenVideoError(
            path, f"shows no frame at {moment:g} s; it plays from {begins[0].item():g} to {end:g} s"
        )
    return (torch.searchsorted(begins, wanted + EPSILON, right=True) - 1).clamp_min(0)
