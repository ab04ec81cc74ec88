"""Reads SPHERE files compressed by shorten, as the LDC distributes WSJ0; other SPHERE files are libsndfile's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmx_fast._extras import require

#: Bytes that hold the header of the LDC's files.
_HEADER = 1024


def is_shortened(path: Path) -> bool:
    """True for a SPHERE file whose header says that shorten compressed its samples."""
    return b"embedded-shorten" in _header(path)


def shortened_samples(path: Path) -> int:
    """The samples per channel that the header of such a file promises; 0 where it promises none."""
    match = re.search(rb"sample_count -i (\d+)", _header(path))
    return int(match[1]) if match else 0


def read_shortened(path: Path, seconds: float) -> tuple[NDArray[np.float32], int]:
    """The first ``seconds`` of such a file, (samples, channels) in [-1, 1), and its rate; decoded by FFmpeg.

    Raises:
        OSError: it can't be decoded.
    """
    av = require("av", "media")
    blocks, count = [], 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate, wanted = stream.rate, round(seconds * stream.rate)
            for frame in container.decode(stream):
                blocks.append(frame.to_ndarray())
                count += frame.samples
                if count >= wanted:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"FFmpeg: {error}") from error
    if not blocks:
        raise OSError("holds no samples")
    return np.concatenate(blocks, axis=1).T[:wanted].astype(np.float32) / 2**15, rate


def _header(path: Path) -> bytes:
    with open(path, "rb") as stream:
        header = stream.read(_HEADER)
    return header if header.startswith(b"NIST_1A") else b""
