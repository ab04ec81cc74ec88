"""Impulse responses by content: the same one under several names is measured once, and counted as one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cmx_fast.data.sets.image2reverb import measure_rt60

#: The rate at which RT60 is measured: the paper's, in Hz.
_RATE = 22050


def digest(file: Path) -> str:
    """The SHA-256 of a file's bytes: equal for copies."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class DecayTimes:
    """RT60 by file, measured once for each content."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def of(self, air: Path) -> float:
        """RT60 in seconds; NaN where noise or the file's end hide the decay.

        Raises:
            BrokenFileError: the file can't be decoded.
        """
        content = digest(air)
        if content not in self._seconds:
            self._seconds[content] = measure_rt60(air, _RATE)
        return self._seconds[content]
