"""Pictures with a class each: from class folders, or in CUB-200-2011's layout with boxes around the birds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cmx_fast.data.loaders.workers import CORES
from cmx_fast.data.media.files import BrokenFileError, picture_problem, stretched
from cmx_fast.data.media.suffixes import PICTURES
from cmx_fast.data.sets.lists import printable, read_list
from cmx_fast.data.sets.own_files import own_files
from cmx_fast.data.sets.recordings import check_split, of_kind
from cmx_fast.data.sets.square_pictures import SquarePictures

#: Left, top, right and bottom in pixels.
Box = tuple[float, float, float, float]


class WithPath(Protocol):
    """Anything with a picture's file."""

    @property
    def path(self) -> Path:
        """The file."""


Entry = TypeVar("Entry", bound=WithPath)


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with the number of its class, a name of its own in its set, and perhaps a box around the object."""

    path: Path
    label: int
    name: str
    box: Box | None = None


class LabelledPictures(SquarePictures):
    """Square pictures and their classes.

    Args:
        entries: the pictures. class_names: by class.
        size: pictures are resized to ``size`` x ``size``.
        skip_bad: leave out pictures that can't be read, and list them in ``skipped``, instead of raising. Every
            picture is decoded once to know.
        source: what names the files, for messages.

    Attributes:
        ids: the names, in order. skipped: (file, reason).
        has_boxes: every picture has a box.

    Raises:
        ValueError: no usable picture, or without ``skip_bad`` one that can't be read; names the file.
    """

    def __init__(
        self,
        entries: list[LabelledPicture],
        class_names: list[str],
        *,
        size: int,
        skip_bad: bool,
        source: str,
    ):
        super().__init__(size, class_names)
        self.entries, self.skipped = readable(entries, skip_bad=skip_bad, source=source)
        self.ids = [entry.name for entry in self.entries]
        self.has_boxes = all(entry.box is not None for entry in self.entries)

    def path(self, index: int) -> Path:
        return self.entries[index].path

    def target(self, index: int) -> dict[str, Tensor]:
        """The answer that a network should give: "label", 0-d int64; with boxes also "box".

        A box (4,) has left, top, right and bottom as shares of the picture's sides.
        """
        entry = self.entries[index]
        label = {"label": torch.tensor(entry.label)}
        if not self.has_boxes:
            return label
        assert entry.box is not None
        width, height = _shown_size(entry.path)
        return {**label, "box": torch.tensor(entry.box) / torch.tensor([width, height, width, height])}


def readable(
    entries: Sequence[Entry], *, skip_bad: bool, source: str
) -> tuple[list[Entry], list[tuple[Path, str]]]:
    """The entries whose ``path`` is a picture that can be decoded, and (file, reason) of the others.

    Raises:
        BrokenFileError: without ``skip_bad`` the first of the others.
        ValueError: there is none; ``source`` is for the message.
    """
    usable, skipped = [], []
    with ThreadPoolExecutor(CORES) as threads:
        faults = threads.map(_fault, [entry.path for entry in entries])
        for entry, error in zip(entries, faults, strict=True):
            if error is None:
                usable.append(entry)
            elif skip_bad:
                skipped.append((entry.path, error.reason))
            else:
                raise error
    if not usable:
        raise ValueError(f"no usable picture among the {len(entries)} {source}")
    return usable, skipped


def _fault(path: Path) -> BrokenFileError | None:
    """The fault of a picture's file, None if there is none; a JPEG file is decoded at an eighth of its size."""
    if (problem := picture_problem(path)) is not None:
        return BrokenFileError(path, problem)
    try:
        stretched(path, lambda *_: (32, 32), draft=True)
    except BrokenFileError as error:
        return error
    return None


def _shown_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture; decodes nothing."""
    from PIL import Image

    from cmx_fast.data.media.picture_formats import orientation

    with Image.open(path) as image:
        return orientation(image).size(*image.size)


def class_folders(root: Path | str, split: str, *, size: int, skip_bad: bool = False) -> LabelledPictures:
    """Class folders, as ImageNet's: ``<root>/<split>/<class>/*.jpg`` or ``*.png``, split "train", "val" or "test".

    Classes are numbered over the splits that are there. A ``root`` without these folders holds the classes' folders
    themselves, or is a table of pictures: :func:`cmx_fast.data.sets.own_files.own_files`.

    Raises:
        ValueError: no such split, or as :class:`LabelledPictures`.
    """
    splits = ("train", "val", "test")
    check_split(split, splits)
    root = Path(root)
    if not any((root / part).is_dir() for part in splits):
        own = own_files(root, split, PICTURES)
        dataset = LabelledPictures(
            [LabelledPicture(picture.path, picture.label, picture.name) for picture in own],
            own.class_names,
            size=size,
            skip_bad=skip_bad,
            source=f"files of {root}",
        )
        dataset.skipped += own.skipped
        return dataset
    if not (root / split).is_dir():
        raise ValueError(f"{root} has no folder {split}; it should hold {split}/<class>/*.jpg")
    classes = sorted({path.name for part in splits for path in (root / part).glob("*") if path.is_dir()})
    entries, others = [], []
    for label, name in enumerate(classes):
        if not (root / split / name).is_dir():
            continue
        files, rest = of_kind(root / split / name, PICTURES)
        entries += [LabelledPicture(file, label, printable(f"{name}/{file.name}")) for file in files]
        others += rest
    dataset = LabelledPictures(
        entries,
        [printable(name) for name in classes],
        size=size,
        skip_bad=skip_bad,
        source=f"files of {root / split}",
    )
    dataset.skipped += others
    return dataset


def cub(root: Path | str, split: str, *, size: int, skip_bad: bool = False) -> LabelledPictures:
    """CUB-200-2011: ``<root>/images/<class>/<name>.jpg``, split "train" or "test" as published, with boxes.

    ``<root>`` holds ``classes.txt`` (1 001.Black_footed_Albatross), ``images.txt`` (1 001.Black.../....jpg),
    ``image_class_labels.txt`` (1 1), ``train_test_split.txt`` (1 0; 1: to train on) and ``bounding_boxes.txt`` (1 60.0
    27.0 325.0 304.0; left, top, width and height).

    Raises:
        ValueError: no such split, a list that is missing or does not fit the others, or as :class:`LabelledPictures`.
    """
    check_split(split, ("train", "test"))
    root = Path(root)
    classes, files, labels, training, boxes = (
        _numbered(root / f"{name}.txt", values)
        for name, values in (
            ("classes", 1), ("images", 1), ("image_class_labels", 1), ("train_test_split", 1), ("bounding_boxes", 4),
        )
    )  # fmt: skip
    numbers = {number: label for label, number in enumerate(classes)}
    entries = []
    for number, (file,) in files.items():
        try:
            (label,), (trained,), corner = labels[number], training[number], [float(v) for v in boxes[number]]
            entry = LabelledPicture(
                root / "images" / file,
                numbers[label],
                printable(file),
                (corner[0], corner[1], corner[0] + corner[2], corner[1] + corner[3]),
            )
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{root}: image {number} of images.txt has no fitting line in every other list ({error})"
            ) from error
        if (trained == "1") == (split == "train"):
            entries.append(entry)
    return LabelledPictures(
        entries,
        [printable(name) for (name,) in classes.values()],
        size=size,
        skip_bad=skip_bad,
        source=f"images of the split {split!r} in {root}",
    )


def _numbered(path: Path, values: int) -> dict[str, list[str]]:
    """The values of each line of one of CUB's lists, by the number that the line begins with."""
    rows = {}
    for line in read_list(path):
        number, *rest = line.split(None, values if values == 1 else -1)
        if len(rest) != values:
            raise ValueError(f"{path}: {line!r} should hold a number and {values} more")
        rows[number] = rest
    return rows


#: By the name that the commands take.
LABELLED_SETS: dict[str, Callable[..., LabelledPictures]] = {"folder": class_folders, "cub": cub}
