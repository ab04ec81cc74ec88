"""Clips of sound files."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError, audio_problem, audio_seconds


def playable(path: Path, seconds: float) -> tuple[float, str | None]:
    """The length of a sound in seconds, and why no clip of ``seconds`` can be cut from it; None if one can."""
    if problem := audio_problem(path):
        return 0.0, problem
    try:
        length = audio_seconds(path)
    except BrokenFileError as error:
        return 0.0, error.reason
    short = f"too short: {length:.2f} s, clips need {seconds:g} s"
    return length, short if length < seconds else None


def cut(wave: Tensor, start: int, samples: int) -> Tensor:
    """The ``samples`` of a wave (N,) from ``start`` on; zeros stand behind its end."""
    clip = wave[start : start + samples]
    return F.pad(clip, (0, samples - len(clip)))
