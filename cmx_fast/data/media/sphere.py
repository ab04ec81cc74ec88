"""Knows SPHERE files compressed by shorten, as the LDC distributes WSJ0; other SPHERE files are libsndfile's."""

from __future__ import annotations

import re
from pathlib import Path

#: Bytes that hold the header of the LDC's files.
_HEADER = 1024


def is_shortened(path: Path) -> bool:
    """True for a SPHERE file whose header says that shorten compressed its samples."""
    return b"embedded-shorten" in _header(path)


def shortened_samples(path: Path) -> int:
    """The samples per channel that the header of such a file promises; 0 where it promises none."""
    match = re.search(rb"sample_count -i (\d+)", _header(path))
    return int(match[1]) if match else 0


def _header(path: Path) -> bytes:
    with open(path, "rb") as stream:
        header = stream.read(_HEADER)
    return header if header.startswith(b"NIST_1A") else b""
