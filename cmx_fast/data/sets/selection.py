"""Selections of the moments of videos that go with their sound, as Sound2Scene's authors publish them.

A JSON object: ``{"<YouTube id>_<start, ms>_<end, ms>": [frame, ...]}``, frames counted at 10 per second from the clip's
start, best first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cmx_fast.data.sets.lists import read_text

FPS = 10
#: Seconds of a VGGSound clip, whose name tells the start alone.
_SECONDS = 10

Selection = dict[str, list[int]]


def key(name: str) -> str:
    """A recording's key in a selection: ``<id>_<start>`` or ``<id>_<start>_<end>`` in seconds as milliseconds.

    Other names stay as they are.
    """
    match = re.fullmatch(r"(.{11})_(\d{6})(?:_(\d{6}))?", name)
    if match is None:
        return name
    start = int(match[2])
    end = int(match[3]) if match[3] else start + _SECONDS
    return f"{match[1]}_{1000 * start}_{1000 * end}"


def read_selection(path: Path | str) -> Selection:
    """The selection in a JSON file.

    Raises:
        ValueError: there is no such file, or it is not JSON, or holds anything but lists of frame numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no selection {path}")
    try:
        selection = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(selection, dict):
        raise ValueError(
            f"{path} must hold an object of lists of frame numbers; got a {type(selection).__name__}"
        )
    for name, frames in selection.items():
        if not (
            isinstance(frames, list) and frames and all(type(frame) is int and frame >= 0 for frame in frames)
        ):
            raise ValueError(f"{path}: {name!r} must be a list of frame numbers, 0 or more; got {frames!r}")
    return selection


def write_selection(path: Path, selection: Selection) -> None:
    """Write a selection as the JSON that :func:`read_selection` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(selection) + "\n")
