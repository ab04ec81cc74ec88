"""Adapters of audio data sets, each in the layout in which it is distributed; they list files and open none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cmx_fast.data.sets.lists import read_table
from cmx_fast.data.sets.recordings import Recordings, check_split, collect, of_kind


def esc50(root: Path | str, split: str, fold: int = 1) -> Recordings:
    """ESC-50: ``<root>/meta/esc50.csv`` (filename,fold,target,category,...) and ``<root>/audio/*.wav``, 50 classes.

    split "test" is the given fold of five, "train" the others.
    """
    check_split(split, ("train", "test"))
    if fold not in range(1, 6):
        raise ValueError(f"fold must be 1 to 5; got {fold!r}")
    table = Path(root) / "meta" / "esc50.csv"
    rows = read_table(table, ("filename", "fold", "target", "category"))
    by_number = {row.whole("target"): row["category"] for row in rows}
    classes = [by_number[number] for number in sorted(by_number)]
    listed = [
        (Path(root) / "audio" / row["filename"], row["category"])
        for row in rows
        if (row.whole("fold") == fold) == (split == "test")
    ]
    return collect(listed, classes, table, split)


def dcase2013(root: Path | str, split: str) -> Recordings:
    """DCASE2013 scenes: ``<root>/scenes_stereo/<class><number>.wav`` ("train", the development set) and
    ``<root>/scenes_stereo_testset/`` ("test"), 10 classes of 10 half-minute recordings each.

    Classes are numbered over both. SoundNet and those after it call training on the one and testing on the other
    DCASE2014.
    """
    check_split(split, ("train", "test"))
    folders = {"train": Path(root) / "scenes_stereo", "test": Path(root) / "scenes_stereo_testset"}
    if not folders[split].is_dir():
        raise ValueError(f"there is no folder {folders[split]}")
    kinds = {part: of_kind(folder, (".wav",)) for part, folder in folders.items() if folder.is_dir()}
    labels = {path: _scene_label(path) for sounds, _ in kinds.values() for path in sounds}
    classes = sorted({label for label in labels.values() if label is not None})
    sounds, others = kinds[split]
    listed = [(path, label) for path in sounds if (label := labels[path]) is not None]
    recordings = collect(listed, classes, folders[split], split)
    unnamed = [(path, "is not called <class><number>") for path in sounds if labels[path] is None]
    recordings.skipped += unnamed + others
    return recordings


def _scene_label(path: Path) -> str | None:
    """The class of a file that is called ``<class><number>``."""
    match = re.fullmatch(r"(\D+)\d+", path.stem)
    return None if match is None else match[1]


#: By the name that the commands take.
AUDIO_SETS: dict[str, Callable[..., Recordings]] = {"esc50": esc50, "dcase2013": dcase2013}
