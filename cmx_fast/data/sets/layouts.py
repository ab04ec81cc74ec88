"""Recognises the layout of a data set by its lists and folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from cmx_fast.data.media.suffixes import PICTURES, VIDEOS
from cmx_fast.data.sets.names import VEGAS_CLASSES

#: Files below a folder that are looked at to see if it holds videos or pictures.
LOOKED_AT = 1000


def layout_of(dataset: str | None, root: Path, choices: Sequence[str]) -> str:
    """The layout that ``dataset`` names, or that of the data in ``root`` where it is None.

    Raises:
        ValueError: a name that is none of the ``choices``; or as :func:`recognised`.
    """
    if dataset is None:
        return recognised(root, choices)
    if dataset not in choices:
        raise ValueError(f"dataset must be one of {', '.join(choices)}; got {dataset!r}")
    return dataset


def recognised(root: Path, choices: Sequence[str]) -> str:
    """The layout of the data in ``root``, one of the ``choices``; "folder" is any other folder, and a table of files.

    Raises:
        ValueError: no such folder or file, or a folder of none of these layouts.
    """
    if not root.exists():
        raise ValueError(f"data: there is no {root}")
    if root.is_dir():
        for name, sign in SIGNS.items():
            if name in choices and sign(root):
                return name
    if "folder" in choices:
        return "folder"
    if len(choices) == 1:
        return choices[0]
    raise ValueError(f"data: {root} has none of the layouts {', '.join(choices)}; name one by --dataset")


def _has_any(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """True if one of the first files below a folder is of these kinds."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(path.suffix.lower() in suffixes for path in islice(files, LOOKED_AT))


def _divided(root: Path) -> bool:
    return (root / "train").is_dir() and any((root / split).is_dir() for split in ("val", "test"))


#: By name, the first that holds decides.
SIGNS: dict[str, Callable[[Path], bool]] = {
    "ucf101": lambda root: (root / "ucfTrainTestlist").is_dir(),
    "hmdb51": lambda root: any((root / "splits").glob("*_test_split?.txt")),
    "pairs": lambda root: any((folder / "audios").is_dir() for folder in (root, root / "train")),
    "vegas": lambda root: any((root / name / "audios").is_dir() for name in VEGAS_CLASSES),
    "vggsound": lambda root: (root / "vggsound.csv").is_file(),
    "kinetics": lambda root: _divided(root) and _has_any(root / "train", VIDEOS),
    "atr": lambda root: (root / "humanparsing").is_dir(),
    "cub": lambda root: (root / "bounding_boxes.txt").is_file(),
    "voc": lambda root: any((folder / "ImageSets").is_dir() for folder in (root, root / "VOC2012")),
    "pictures": lambda root: _has_any(root, PICTURES) and not _has_any(root, VIDEOS),
}
