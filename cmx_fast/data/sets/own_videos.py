"""A folder of one's own videos, divided by their names into parts to train on, to choose by and to test on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cmx_fast.data.sets.lists import printable, read_table
from cmx_fast.data.sets.recordings import Recordings, check_split, collect, of_kind

#: The parts with the share of the videos that each gets.
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
CLASSES = "classes.csv"
UNLABELLED = "unlabelled"


def own_videos(root: Path | str, split: str, suffixes: tuple[str, ...]) -> Recordings:
    """Videos anywhere below ``root``; split "train", "val" or "test".

    A video's part follows from a hash of its file name without the ending: the same on every machine, whatever videos
    join or leave, in whichever folder they lie. About 70 % are "train", 10 % "val", 20 % "test". Cuts of one recording
    should have one name, in folders of their own, or they end up in several parts.

    ``<root>/classes.csv`` (name,label; the name with or without folders and ending) gives classes where there are any;
    without it the folder does in which a video lies, and a video in ``root`` itself is "unlabelled".

    Raises:
        ValueError: no such folder, no video of that part in it, or a name that is listed twice with different labels.
    """
    check_split(split, tuple(SHARES))
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    videos, others = of_kind(root, suffixes, nested=True)
    labels = _labels(root, videos)
    recordings = collect(
        [(video, labels[video]) for video in videos if part(video.stem) == split],
        sorted(set(labels.values())),
        root,
        split,
    )
    recordings.skipped += [(path, reason) for path, reason in others if path.name != CLASSES]
    return recordings


def place_of(name: str) -> float:
    """A number in [0, 1) that follows from a name alone: the names below 0.1 are about a tenth of all."""
    return int.from_bytes(hashlib.sha256(printable(name).encode()).digest()[:8], "big") / 2**64


def part(name: str) -> str:
    """The part to which a video of this name belongs."""
    place = place_of(name)
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return split


def _labels(root: Path, videos: list[Path]) -> dict[Path, str]:
    """The label of each video, by classes.csv or by the folder in which it lies."""
    table = root / CLASSES
    if not table.is_file():
        return {
            video: printable(video.parent.name) if video.parent != root else UNLABELLED for video in videos
        }
    listed: dict[str, str] = {}
    for row in read_table(table, ("name", "label")):
        stem = Path(row["name"]).stem
        if listed.setdefault(stem, row["label"]) != row["label"]:
            raise ValueError(
                f"{row.where}: {row['name']!r} has two labels, {listed[stem]!r} and {row['label']!r}"
            )
    return {video: listed.get(video.stem) or UNLABELLED for video in videos}
