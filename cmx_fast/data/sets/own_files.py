"""One's own files, below a folder or listed in a table, in parts to train on, to choose settings by and to test on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cmx_fast.data.sets.lists import printable, read_table
from cmx_fast.data.sets.recordings import Recordings, check_split, collect, of_kind

#: The parts with the share of the files that each gets.
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
CLASSES = "classes.csv"
UNLABELLED = "unlabelled"


def own_files(
    root: Path | str, split: str, suffixes: tuple[str, ...], shares: Mapping[str, float] = SHARES
) -> Recordings:
    """Files of some kinds, in the part ``split``: "train", "val" or "test".

    ``root`` is a folder, or a table (CSV) with the columns ``path``, relative to the table's folder, and where there
    are any ``label`` and ``split``.

    Where no table says its part, it follows from a hash of the file's name without the ending: the same on every
    machine, whatever files join or leave, in whichever folder they lie. Each part has its share of ``shares``: about
    70 % are "train", 10 % "val", 20 % "test". Cuts of one recording should have one name, in folders of their own, or
    they end up in several parts.

    Files may lie anywhere below a folder. ``<root>/classes.csv`` (name,label; the name with or without folders and
    ending) gives their classes; without it the folder does in which a file lies, and a file in ``root`` itself is
    "unlabelled".

    Raises:
        ValueError: no such folder or table, no file of that part in it, a name that is listed twice with different
            labels, a path that is listed twice, or a part that is none.
    """
    check_split(split, tuple(SHARES))
    root = Path(root)
    if root.is_file():
        parts, labels, others = _listed(root, suffixes, shares)
    elif root.is_dir():
        files, others = of_kind(root, suffixes, nested=True)
        labels = _labels(root, files)
        parts = {file: part(file.stem, shares) for file in files}
        others = [(path, reason) for path, reason in others if path.name != CLASSES]
    else:
        raise ValueError(f"there is no folder or table {root}")
    chosen = [(file, labels[file]) for file in parts if parts[file] == split]
    if not chosen:
        raise ValueError(
            f"{root}: none of its {len(parts)} files ({', '.join(suffixes)}) is in the part {split!r}; parts follow "
            "from the files' names, or from the column split of a table: path,split"
        )
    recordings = collect(chosen, sorted(set(labels.values())), root, split)
    recordings.skipped += others
    return recordings


def place_of(name: str) -> float:
    """A number in [0, 1) that follows from a name alone: the names below 0.1 are about a tenth of all."""
    return int.from_bytes(hashlib.sha256(printable(name).encode()).digest()[:8], "big") / 2**64


def part(name: str, shares: Mapping[str, float] = SHARES) -> str:
    """The part to which a file of this name belongs."""
    place = place_of(name)
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return split


def _listed(
    table: Path, suffixes: tuple[str, ...], shares: Mapping[str, float]
) -> tuple[dict[Path, str], dict[Path, str], list[tuple[Path, str]]]:
    """The part and the label of each file that a table lists, and (file, reason) of those of other kinds."""
    parts: dict[Path, str] = {}
    labels: dict[Path, str] = {}
    others = []
    for row in read_table(table, ("path",)):
        file = table.parent / row["path"]
        if file.suffix.lower() not in suffixes:
            others.append((file, f"does not end in {', '.join(suffixes)}"))
            continue
        if file in parts:
            raise ValueError(f"{row.where}: {row['path']!r} is listed twice")
        parts[file] = row.one_of("split", tuple(SHARES)) if row.get("split") else part(file.stem, shares)
        labels[file] = row.get("label") or UNLABELLED
    return parts, labels, others


def _labels(root: Path, files: list[Path]) -> dict[Path, str]:
    """The label of each file, by classes.csv or by the folder in which it lies."""
    table = root / CLASSES
    if not table.is_file():
        return {file: printable(file.parent.name) if file.parent != root else UNLABELLED for file in files}
    listed: dict[str, str] = {}
    for row in read_table(table, ("name", "label")):
        stem = Path(row["name"]).stem
        if listed.setdefault(stem, row["label"]) != row["label"]:
            raise ValueError(
                f"{row.where}: {row['name']!r} has two labels, {listed[stem]!r} and {row['label']!r}"
            )
    return {file: listed.get(file.stem) or UNLABELLED for file in files}
