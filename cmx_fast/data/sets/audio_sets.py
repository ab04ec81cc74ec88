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


#: Recordings of a class that make up a fold of DCASE2013.
PER_FOLD = 2


def dcase2013(root: Path | str, split: str, fold: int = 1) -> Recordings:
    """DCASE2013's development scenes: ``<root>/scenes_stereo/<class><number>.wav``, 10 classes of 10 half-minute ones.

    split "test" is the given fold of five, "train" the others. A fold has two recordings of each class: the first those
    numbered 1 and 2, the last 9 and 10. The folds are ours, as no list of any is distributed with the recordings.
    """
    check_split(split, ("train", "test"))
    if fold not in range(1, 6):
        raise ValueError(f"fold must be 1 to 5; got {fold!r}")
    return _scenes(
        {split: Path(root) / "scenes_stereo"},
        split,
        lambda number: ((number - 1) // PER_FOLD + 1 == fold) == (split == "test"),
    )


def dcase2014(root: Path | str, split: str) -> Recordings:
    """The same scenes as SoundNet and those after it use them, under the name DCASE2014.

    split "train" is the development set, ``<root>/scenes_stereo/``, and "test" the test set,
    ``<root>/scenes_stereo_testset/``, 100 recordings each. Classes are numbered over both.
    """
    check_split(split, ("train", "test"))
    folders = {"train": Path(root) / "scenes_stereo", "test": Path(root) / "scenes_stereo_testset"}
    return _scenes(folders, split, lambda number: True)


def _scenes(folders: dict[str, Path], split: str, belongs: Callable[[int], bool]) -> Recordings:
    """The recordings ``<class><number>.wav`` of a split's folder whose number belongs to it."""
    if not folders[split].is_dir():
        raise ValueError(f"there is no folder {folders[split]}")
    kinds = {part: of_kind(folder, (".wav",)) for part, folder in folders.items() if folder.is_dir()}
    scenes = {path: _scene(path) for sounds, _ in kinds.values() for path in sounds}
    classes = sorted({scene[0] for scene in scenes.values() if scene is not None})
    sounds, others = kinds[split]
    known = [(path, scene) for path in sounds if (scene := scenes[path]) is not None]
    listed = [(path, label) for path, (label, number) in known if belongs(number)]
    recordings = collect(listed, classes, folders[split], split)
    unnamed = [(path, "is not called <class><number>") for path in sounds if scenes[path] is None]
    recordings.skipped += unnamed + others
    return recordings


def _scene(path: Path) -> tuple[str, int] | None:
    """Class and number of a file that is called ``<class><number>``."""
    match = re.fullmatch(r"(\D+)(\d+)", path.stem)
    return None if match is None else (match[1], int(match[2]))


#: By the name that the commands take.
AUDIO_SETS: dict[str, Callable[..., Recordings]] = {
    "esc50": esc50,
    "dcase2013": dcase2013,
    "dcase2014": dcase2014,
}
