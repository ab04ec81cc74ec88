"""Decodes the sounds that libsndfile does not read, by FFmpeg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmx_fast._extras import require

#: Seconds of a file that are decoded where all of it is wanted.
LONGEST = 86400.0


def decode(path: Path, seconds: float) -> tuple[NDArray[np.float32], int]:
    """The first ``seconds`` of a file's first sound track, (samples, channels) in [-1, 1), and its rate.

    Raises:
        OSError: it can't be decoded, or has no sound.
    """
    av = require("av", "media")
    blocks, count = [], 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise OSError("it has no sound")
            stream = container.streams.audio[0]
            rate, wanted = stream.rate, round(seconds * stream.rate)
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                blocks += [block.to_ndarray() for block in to_float.resample(frame)]
                count += frame.samples
                if count >= wanted:
                    break
    except av.FFmpegError as error:
        raise OSError(f"FFmpeg: {error}") from error
    if not blocks:
        raise OSError("holds no samples")
    return np.concatenate(blocks, axis=1).T[:wanted], rate


def problem(path: Path) -> str | None:
    """The fault of a file as far as its header tells, or None. Decodes nothing."""
    av = require("av", "media")
    try:
        with av.open(str(path)) as container:
            return None if container.streams.audio else "has no sound"
    except av.FFmpegError as error:
        return f"not a readable audio file ({error})"
