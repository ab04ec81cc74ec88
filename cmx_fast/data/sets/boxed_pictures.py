"""Pictures with boxes around their objects, in PASCAL VOC's layout."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.data.sets.labelled_pictures import readable
from cmx_fast.data.sets.lists import read_list
from cmx_fast.data.sets.masked_pictures import VOC_CLASSES, voc_root
from cmx_fast.data.sets.recordings import check_split
from cmx_fast.data.sets.square_pictures import SquarePictures


@dataclass(frozen=True)
class BoxedPicture:
    """A picture and its objects.

    Attributes:
        boxes: (N, 4) left, top, right and bottom as shares of the picture's sides.
        labels: (N,) int64 from 1 on.
        difficult: (N,) bool, objects that are not asked for.
    """

    path: Path
    name: str
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


class BoxedPictures(SquarePictures):
    """Square pictures and their objects.

    Args:
        entries: the pictures. class_names: by label, the first of label 1.
        size: pictures are resized to ``size`` x ``size``.
        skip_bad: leave out pictures that can't be read, and list them in ``skipped``, instead of raising.
        source: what names the files, for messages.

    Attributes:
        ids: the names, in order. skipped: (file, reason).

    Raises:
        ValueError: no usable picture, or without ``skip_bad`` one that can't be read; names the file.
    """

    def __init__(
        self, entries: list[BoxedPicture], class_names: list[str], *, size: int, skip_bad: bool, source: str
    ):
        super().__init__(size, class_names)
        self.entries, self.skipped = readable(entries, skip_bad=skip_bad, source=source)
        self.ids = [entry.name for entry in self.entries]
        self._most = max(1, *(len(entry.labels) for entry in self.entries))

    def path(self, index: int) -> Path:
        return self.entries[index].path

    def target(self, index: int) -> dict[str, Tensor]:
        """The answer that a network should give: "boxes" (M, 4), "labels" (M,) and "difficult" (M,).

        M is the largest number of objects in a picture; rows without object have label 0.
        """
        entry = self.entries[index]
        count = len(entry.labels)
        boxes, labels = torch.zeros(self._most, 4), torch.zeros(self._most, dtype=torch.int64)
        difficult = torch.zeros(self._most, dtype=torch.bool)
        boxes[:count], labels[:count], difficult[:count] = entry.boxes, entry.labels, entry.difficult
        return {"boxes": boxes, "labels": labels, "difficult": difficult}


def voc_objects(root: Path | str, split: str, *, size: int, skip_bad: bool = False) -> BoxedPictures:
    """PASCAL VOC's detection: ``<root>/JPEGImages/<id>.jpg`` and ``<root>/Annotations/<id>.xml``, 20 classes.

    ``<root>/ImageSets/Main/<split>.txt`` lists the ids of "train", "val", "trainval" or, of VOC2007, "test". ``<root>``
    is VOC2012, or the VOCdevkit above it.

    Raises:
        ValueError: no such split, list or annotation, an annotation that can't be read, an object of another class or
            without area, or as :class:`BoxedPictures`; names the file.
    """
    check_split(split, ("train", "val", "trainval", "test"))
    root = voc_root(Path(root))
    source = root / "ImageSets" / "Main" / f"{split}.txt"
    entries = [
        _annotated(root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml")
        for name in read_list(source)
    ]
    return BoxedPictures(
        entries, list(VOC_CLASSES[1:]), size=size, skip_bad=skip_bad, source=f"ids of {source}"
    )


def _annotated(picture: Path, file: Path) -> BoxedPicture:
    """The picture with the objects of its annotation."""
    try:
        tree = ElementTree.parse(file)
        width, height = (float(_text(tree.getroot(), f"size/{side}")) for side in ("width", "height"))
        rows = []
        for thing in tree.iter("object"):
            name = _text(thing, "name")
            if name not in VOC_CLASSES[1:]:
                raise ValueError(f"{name!r} is no class of VOC")
            left, top, right, bottom = (
                float(_text(thing, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")
            )
            # VOC counts pixels from 1, the last one included.
            box = ((left - 1) / width, (top - 1) / height, right / width, bottom / height)
            if box[0] >= box[2] or box[1] >= box[3]:
                raise ValueError(f"an object has the box {left:g}, {top:g}, {right:g}, {bottom:g}")
            rows.append((box, VOC_CLASSES.index(name), thing.findtext("difficult", "0").strip() == "1"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing, though {picture.stem} is in the list") from error
    except (ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file} can't be read as an annotation of VOC: {error}") from error
    return BoxedPicture(
        picture,
        picture.stem,
        torch.tensor([box for box, _, _ in rows]).view(-1, 4).clamp(0, 1),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        torch.tensor([difficult for _, _, difficult in rows], dtype=torch.bool),
    )


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text.strip()


#: By the name that the commands take.
BOXED_SETS: dict[str, Callable[..., BoxedPictures]] = {"voc": voc_objects}
