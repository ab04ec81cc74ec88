"""Adapters of video data sets, each in the layout in which it is distributed; they list files and open none."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from .recordings import Recordings, check_split, collect, read_list

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


def kinetics(root: Path | str, split: str) -> Recordings:
    """Kinetics-400: ``<root>/<split>/<class>/<youtube id>_<start>_<end>.mp4``, split "train", "val" or "test".

    With ``<root>/<split>.csv`` (label,youtube_id,time_start,time_end,split,is_cc) the list decides, without one the
    folders do. A class's folder may have underscores for the spaces of its label.
    """
    check_split(split, ("train", "val", "test"))
    root = Path(root)
    folder, table = root / split, root / f"{split}.csv"
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder {split}; it should hold {split}/<class>/*.mp4")
    if not table.is_file():
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        listed = [
            (path, name)
            for name in classes
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in VIDEO_SUFFIXES
        ]
        return collect(listed, classes, folder, split)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"label", "youtube_id", "time_start", "time_end"} - set(rows[0] if rows else ())
    if missing or any(None in row.values() for row in rows):
        raise ValueError(f"{table} must have label, youtube_id, time_start and time_end in every row")
    listed = []
    for row in rows:
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        of_class = folder / row["label"]
        if not of_class.is_dir():
            of_class = folder / row["label"].replace(" ", "_")
        listed.append((_in_any_container(of_class / name), row["label"]))
    return collect(listed, sorted({row["label"] for row in rows}), table, split)


def vggsound(root: Path | str, split: str) -> Recordings:
    """VGGSound: ``<root>/vggsound.csv`` (youtube id,start,label,split) and ``<root>/video/<id>_<start>.mp4``.

    split "train" or "test". The list has no header; in file names the start is padded to six digits.
    """
    check_split(split, ("train", "test"))
    table = Path(root) / "vggsound.csv"
    if not table.is_file():
        raise ValueError(f"there is no {table}")
    with table.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    listed = [
        (_in_any_container(Path(root) / "video" / f"{identity}_{int(start):06d}.mp4"), label)
        for identity, start, label, of_split in rows
        if of_split == split
    ]
    return collect(listed, sorted({row[2] for row in rows}), table, split)


def ucf101(root: Path | str, split: str, fold: int = 1) -> Recordings:
    """UCF101: ``<root>/ucfTrainTestlist/{classInd,trainlist0F,testlist0F}.txt`` and ``<root>/UCF-101/<class>/*.avi``.

    split "train" or "test" of fold 1, 2 or 3. The class folders may also lie in ``<root>`` itself.
    """
    check_split(split, ("train", "test"))
    _check_fold(fold)
    root = Path(root)
    lists = root / "ucfTrainTestlist"
    classes = [line.split(maxsplit=1)[1] for line in read_list(lists / "classInd.txt")]
    source = lists / f"{split}list{fold:02d}.txt"
    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    names = [line.split()[0] for line in read_list(source)]
    return collect([(videos / name, name.split("/")[0]) for name in names], classes, source, split)


def hmdb51(root: Path | str, split: str, fold: int = 1) -> Recordings:
    """HMDB51: ``<root>/splits/<class>_test_split<fold>.txt`` (file 0, 1 or 2) and ``<root>/videos/<class>/*.avi``.

    split "train" (1 in the lists) or "test" (2) of fold 1, 2 or 3; 0 belongs to neither.
    """
    check_split(split, ("train", "test"))
    _check_fold(fold)
    root = Path(root)
    suffix = f"_test_split{fold}.txt"
    sources = sorted((root / "splits").glob(f"*{suffix}"))
    if not sources:
        raise ValueError(f"there is no <class>{suffix} in {root / 'splits'}")
    wanted = {"train": "1", "test": "2"}[split]
    listed = []
    for source in sources:
        label = source.name.removesuffix(suffix)
        for line in read_list(source):
            name, part = line.rsplit(maxsplit=1)
            if part == wanted:
                listed.append((root / "videos" / label / name, label))
    return collect(listed, [source.name.removesuffix(suffix) for source in sources], root / "splits", split)


def _in_any_container(path: Path) -> Path:
    """The file, or where it is missing the same in another container: not every downloader makes MP4."""
    if path.is_file():
        return path
    others = (path.with_suffix(suffix) for suffix in VIDEO_SUFFIXES)
    return next((other for other in others if other.is_file()), path)


def _check_fold(fold: int) -> None:
    if fold not in (1, 2, 3):
        raise ValueError(f"fold must be 1, 2 or 3; got {fold!r}")


#: By the name that the commands take.
VIDEO_SETS: dict[str, Callable[..., Recordings]] = {
    "kinetics": kinetics,
    "vggsound": vggsound,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}


def held_out(name: str) -> str:
    """What a set calls the split that is not trained on."""
    return "val" if name == "kinetics" else "test"
