"""Pictures with masks that say the class of every pixel: from a plain folder, or in VOC's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmx_fast.data.media.picture_formats import DAMAGE, UPRIGHT, Turn, labels, orientation
from cmx_fast.data.media.suffixes import PICTURES
from cmx_fast.data.sets.lists import printable, read_list
from cmx_fast.data.sets.recordings import check_split, of_kind
from cmx_fast.data.sets.square_pictures import SquarePictures

#: The label of pixels that do not count, in VOC and in plain folders.
VOID = 255
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class MaskedPictures(SquarePictures):
    """Square pictures and masks of classes.

    A picture that asks to be turned (EXIF) comes upright, and its mask with it. The mask's own EXIF decides; where it
    has none and the mask is as large as the stored picture, the picture's does.

    Args:
        files: name, picture and mask of each.
        classes: (L,) int64, the class of each label from 0 on.
        class_names: by class.
        size: pictures and masks are resized to ``size`` x ``size``, masks by the nearest pixel.
        skip_bad: leave out pictures that can't be used, and list them in ``skipped``, instead of raising.
        source: what names the files ("ids of <list>"); kind: whose labels they are. Both are for messages.
        void: the label of pixels that do not count; None: all do.

    Attributes:
        ids: the names, in order.
        class_names: by class.
        skipped: (file, reason) of pictures that were left out.

    Raises:
        ValueError: no usable picture, or without ``skip_bad`` a missing file, a picture that can't be read, a mask of
            another size than its picture, or a label without class; the message names the file.
    """

    DRAFT = False

    def __init__(
        self,
        files: Sequence[tuple[str, Path, Path]],
        classes: Tensor,
        class_names: Sequence[str],
        *,
        size: int,
        skip_bad: bool,
        source: str,
        kind: str = "the classes",
        void: int | None = VOID,
    ):
        super().__init__(size, class_names)
        self._labels, self._kind, self._void = len(classes), kind, void
        self._class_of_label = torch.full((VOID + 1,), -1)
        self._class_of_label[: len(classes)] = classes
        self.skipped, self.ids = [], []
        self._files: list[tuple[Path, Path]] = []
        self._turns: list[Turn] = []
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter free
            checks = [pool.submit(self._check, *entry) for entry in files]
            for (name, picture, mask), check in zip(files, checks, strict=True):
                try:
                    turn = check.result()
                except ValueError as error:
                    if not skip_bad:
                        pool.shutdown(cancel_futures=True)
                        raise
                    self.skipped.append((picture, str(error)))
                else:
                    self.ids.append(name)
                    self._files.append((picture, mask))
                    self._turns.append(turn)
        if not self.ids:
            raise ValueError(f"no usable picture among the {len(files)} {source}")

    def path(self, index: int) -> Path:
        return self._files[index][0]

    def load_mask(self, index: int) -> Tensor:
        """The mask alone, int64 (S, S) of classes; -1 where it does not count."""
        with Image.open(self._files[index][1]) as mask:
            resized = labels(mask.resize((self.size, self.size), Image.Resampling.NEAREST))
        return self._class_of_label[self._turns[index](torch.from_numpy(resized.astype(np.int64)))]

    def target(self, index: int) -> dict[str, Tensor]:
        """The answer that a network should give: "mask"."""
        return {"mask": self.load_mask(index)}

    def _check(self, name: str, picture: Path, mask: Path) -> Turn:
        """Check a picture and its mask: readable, of one size, labels in range; gives the way that the mask is turned.

        Damage within the pixels shows only when the picture is decoded.
        """
        sizes, turns = [], []
        for path in (picture, mask):
            try:
                with Image.open(path) as image:
                    turns.append(orientation(image))
                    sizes.append(image.size)
                    highest = self._highest(image) if path is mask else 0
                    image.load()
            except FileNotFoundError as error:
                raise ValueError(f"{path} is missing, though {name} is in the list") from error
            except DAMAGE as error:
                raise ValueError(f"{path} can't be read as an image: {error}") from error
            if highest >= self._labels:
                raise ValueError(f"{path} has label {highest}; {self._kind} go up to {self._labels - 1}")
        turn = turns[0] if turns[1] == UPRIGHT and sizes[0] == sizes[1] else turns[1]
        shown = turns[0].size(*sizes[0]), turn.size(*sizes[1])
        if shown[0] != shown[1]:
            raise ValueError(f"{mask} is a mask of {shown[1]} pixels for a picture of {shown[0]}")
        return turn

    def _highest(self, mask: Image.Image) -> int:
        """The highest label that counts in a mask."""
        found = labels(mask)
        return int(found.max() if self._void is None else found[found != self._void].max(initial=0))


def folder(root: Path | str, split: str, *, size: int, skip_bad: bool = False) -> MaskedPictures:
    """A plain folder: ``<root>/<split>/pictures/<name>.jpg`` and ``<root>/<split>/masks/<name>.png``.

    ``<root>/classes.txt`` names the classes, a line each, the first of label 0. Masks hold labels as grey levels or as
    a palette's indices; 255 does not count. Pictures may be JPEG or PNG files.

    Raises:
        ValueError: no such split or list, or as :class:`MaskedPictures`.
    """
    check_split(split, ("train", "val", "test"))
    root = Path(root)
    names = [printable(name) for name in read_list(root / "classes.txt")]
    if not 1 <= len(names) <= VOID:
        raise ValueError(f"{root / 'classes.txt'} must name 1 to {VOID} classes; it has {len(names)}")
    pictures = root / split / "pictures"
    if not pictures.is_dir():
        raise ValueError(
            f"{root} has no folder {split}/pictures; it should hold {split}/pictures and {split}/masks"
        )
    files, others = of_kind(pictures, PICTURES)
    listed = [(printable(file.stem), file, root / split / "masks" / f"{file.stem}.png") for file in files]
    dataset = MaskedPictures(
        listed, torch.arange(len(names)), names, size=size, skip_bad=skip_bad, source=f"files of {pictures}"
    )
    dataset.skipped += others
    return dataset


def voc(root: Path | str, split: str, *, size: int, skip_bad: bool = False) -> MaskedPictures:
    """PASCAL VOC's segmentation: ``<root>/JPEGImages/<id>.jpg`` and ``<root>/SegmentationClass/<id>.png``, 21 classes.

    ``<root>/ImageSets/Segmentation/<split>.txt`` lists the ids of "train", "val" or "trainval". ``<root>`` is VOC2012,
    or the VOCdevkit above it. Borders of objects (255) do not count.

    Raises:
        ValueError: no such split or list, or as :class:`MaskedPictures`.
    """
    check_split(split, ("train", "val", "trainval"))
    root = voc_root(Path(root))
    source = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    listed = [
        (name, root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in read_list(source)
    ]
    return MaskedPictures(
        listed,
        torch.arange(len(VOC_CLASSES)),
        VOC_CLASSES,
        size=size,
        skip_bad=skip_bad,
        source=f"ids of {source}",
        kind="VOC's",
    )


def voc_root(root: Path) -> Path:
    """The folder of VOC2012 itself, where ``root`` is the VOCdevkit above it."""
    inside = root / "VOC2012"
    return inside if not (root / "ImageSets").is_dir() and inside.is_dir() else root


#: Plain layouts by the name that the commands take; ATR's is :class:`cmx_fast.data.sets.atr.ATR`.
MASKED_SETS: dict[str, Callable[..., MaskedPictures]] = {"folder": folder, "voc": voc}
