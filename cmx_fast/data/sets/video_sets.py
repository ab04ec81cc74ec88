"""Adapters of video data sets, each in the layout in which it is distributed; they list files and open none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cmx_fast.data.media.suffixes import VIDEOS
from cmx_fast.data.sets.lists import read_list, read_table
from cmx_fast.data.sets.own_files import own_files
from cmx_fast.data.sets.recordings import Recordings, check_split, collect, of_kind

KINETICS_SPLITS = ("train", "val", "test")


def kinetics(root: Path | str, split: str) -> Recordings:
    """Kinetics-400: ``<root>/<split>/<class>/<youtube id>_<start>_<end>.mp4``, split "train", "val" or "test".

    With ``<root>/<split>.csv`` (label,youtube_id,time_start,time_end,split,is_cc) the list decides, without one the
    folders do. A class's folder may have underscores for the spaces of its label. Listed videos may also lie in
    ``<root>/<split>`` itself. Classes are numbered over all splits in ``root``.
    """
    check_split(split, KINETICS_SPLITS)
    root = Path(root)
    folder, table = root / split, root / f"{split}.csv"
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder {split}; it should hold {split}/<class>/*.mp4")
    rows = None
    if table.is_file():
        rows = read_table(table, ("label", "youtube_id", "time_start", "time_end"))
    labels = _kinetics_labels(root)
    classes = sorted(set(labels.values()))
    if rows is None:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        kinds = {path: of_kind(path, VIDEOS) for path in folders}
        listed = [
            (video, labels[_joined(path.name)]) for path, (videos, _) in kinds.items() for video in videos
        ]
        recordings = collect(listed, classes, folder, split)
        recordings.skipped += [other for _, others in kinds.values() for other in others]
        flat, _ = of_kind(folder, VIDEOS)
        recordings.skipped += [
            (path, f"lies in no class's folder, and there is no {table.name}") for path in flat
        ]
        return recordings
    listed = []
    for row in rows:
        name = f"{row['youtube_id']}_{row.whole('time_start'):06d}_{row.whole('time_end'):06d}.mp4"
        label = labels.get(_joined(row["label"]), row["label"])
        places = [folder / row["label"], folder / _joined(row["label"]), folder]
        videos = [_in_any_container(place / name) for place in places]
        listed.append((next((video for video in videos if video.is_file()), videos[1]), label))
    return collect(listed, classes, table, split)


def _kinetics_labels(root: Path) -> dict[str, str]:
    """The labels of all splits, by the label with underscores for spaces; from a split's list, else from its folders.

    Numbers over all of them are the same in every split, whichever classes a split lacks.
    """
    from_folders: dict[str, str] = {}
    from_lists: dict[str, str] = {}
    for split in KINETICS_SPLITS:
        folder, table = root / split, root / f"{split}.csv"
        if table.is_file():  # lists of the test split may have no labels
            rows = read_table(table, ("youtube_id",))
            from_lists |= {_joined(row["label"]): row["label"] for row in rows if row.get("label")}
        elif folder.is_dir():
            from_folders |= {_joined(path.name): path.name for path in folder.iterdir() if path.is_dir()}
    return from_folders | from_lists


def _joined(label: str) -> str:
    return label.replace(" ", "_")


def vggsound(root: Path | str, split: str) -> Recordings:
    """VGGSound: ``<root>/vggsound.csv`` (youtube id,start,label,split) and ``<root>/video/<id>_<start>.mp4``.

    split "train" or "test", or "val" where somebody has added such lines. The list has no header; in file names the
    start is padded to six digits.
    """
    check_split(split, ("train", "val", "test"))
    table = Path(root) / "vggsound.csv"
    names, classes = vggsound_list(table, split)
    videos = Path(root) / "video"
    return collect(
        [(_in_any_container(videos / f"{n}.mp4"), label) for n, label in names], classes, table, split
    )


def vggsound_list(table: Path, split: str) -> tuple[list[tuple[str, str]], list[str]]:
    """``<id>_<start>`` and class of each entry of a split in VGGSound's list, and the classes of all."""
    rows = read_table(table, ("youtube id", "start", "label", "split"), header=False)
    listed = [
        (f"{row['youtube id']}_{row.whole('start'):06d}", row["label"])
        for row in rows
        if row.one_of("split", ("train", "val", "test")) == split
    ]
    return listed, sorted({row["label"] for row in rows})


def ucf101(root: Path | str, split: str, fold: int = 1) -> Recordings:
    """UCF101: ``<root>/ucfTrainTestlist/{classInd,trainlist0F,testlist0F}.txt`` and ``<root>/UCF-101/<class>/*.avi``.

    split "train" or "test" of fold 1, 2 or 3. The class folders may also lie in ``<root>`` itself.
    """
    check_split(split, ("train", "test"))
    _check_fold(fold)
    root = Path(root)
    lists = root / "ucfTrainTestlist"
    classes = [_halves(lists / "classInd.txt", line)[1] for line in read_list(lists / "classInd.txt")]
    source = lists / f"{split}list{fold:02d}.txt"
    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    names = [
        re.sub(r"\s+\d+$", "", line) for line in read_list(source)
    ]  # training lists have the class's number
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
            name, part = _halves(source, line, of_end=True)
            if part not in ("0", "1", "2"):
                raise ValueError(f"{source}: {line!r} must end in 0, 1 or 2")
            if part == wanted:
                listed.append((root / "videos" / label / name, label))
    return collect(listed, [source.name.removesuffix(suffix) for source in sources], root / "splits", split)


def _halves(source: Path, line: str, *, of_end: bool = False) -> list[str]:
    """The first word of a line and the rest, or the rest and the last."""
    parts = line.rsplit(maxsplit=1) if of_end else line.split(maxsplit=1)
    if len(parts) != 2:
        raise ValueError(f"{source}: {line!r} must hold a name and a number")
    return parts


def _in_any_container(path: Path) -> Path:
    """The file, or where it is missing the same video in another container: not every downloader makes MP4."""
    if path.is_file():
        return path
    others = (path.with_suffix(suffix) for suffix in VIDEOS)
    return next((other for other in others if other.is_file()), path)


def folder(root: Path | str, split: str) -> Recordings:
    """One's own videos, of any folder or a table: :func:`cmx_fast.data.sets.own_files.own_files`."""
    return own_files(root, split, VIDEOS)


def _check_fold(fold: int) -> None:
    if fold not in (1, 2, 3):
        raise ValueError(f"fold must be 1, 2 or 3; got {fold!r}")


#: By the name that the commands take.
VIDEO_SETS: dict[str, Callable[..., Recordings]] = {
    "kinetics": kinetics,
    "vggsound": vggsound,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "folder": folder,
}
#: Those with sound, on which encoders of both can be trained.
WITH_SOUND = ("kinetics", "vggsound", "folder")


def held_out(name: str) -> str:
    """The name of a set's split that is not trained on: by which one chooses, where there is one."""
    return "val" if name in ("kinetics", "folder") else "test"
