"""Clips of sound files."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from cmx_fast._extras import require
from cmx_fast.data.media.files import audio_problem


def playable(path: Path, seconds: float) -> tuple[float, str | None]:
    """The length of a sound in seconds, and why no clip of ``seconds`` can be cut from it; None if one can."""
    problem = audio_problem(path)
    length = 0.0 if problem else float(require("soundfile", "media").info(path).duration)
    if problem is None and length < seconds:
        problem = f"too short: {length:.2f} s, clips need {seconds:g} s"
    return length, problem


def cut(wave: Tensor, start: int, samples: int) -> Tensor:
    """The ``samples`` of a wave (N,) from ``start`` on; zeros stand behind its end."""
    clip = wave[start : start + samples]
    return F.pad(clip, (0, samples - len(clip)))
