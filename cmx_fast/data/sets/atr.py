"""ATR: pictures of people with masks of 18 labels, in the data set's own layout.

::

    <root>/humanparsing/JPEGImages/<id>.jpg
    <root>/humanparsing/SegmentationClassAug/<id>.png    indexed, labels 0 to 17
    <root>/train_id.txt, val_id.txt, test_id.txt         one id per line; here or in humanparsing/

The labels are 0 background, 1 hat, 2 hair, 3 sunglasses, 4 upper clothes, 5 skirt, 6 pants, 7 dress, 8 belt, 9 left and
10 right shoe, 11 face, 12 left and 13 right leg, 14 left and 15 right arm, 16 bag, 17 scarf.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.media.files import stretched
from cmx_fast.data.media.picture_formats import DAMAGE, UPRIGHT, Turn, labels, orientation
from cmx_fast.data.sets.lists import read_list, read_text

LABELS = 18
SPLITS = ("train", "val", "test")


def load_merge(path: Path | None = None) -> dict[str, list[int]]:
    """Classes by name with the labels that each takes, from a JSON file; default the packaged ``atr_merge.json``.

    The paper merges to upper body, lower body and background without saying where each label goes: the packaged table
    is ours, with dresses and bags in the upper body and belts in the lower.

    Raises:
        ValueError: a label of 0 to 17 that no class takes, or two do, or one beyond them.
    """
    text = (
        resources.files(__package__).joinpath("atr_merge.json").read_text()
        if path is None
        else read_text(Path(path))
    )
    merge = json.loads(text)
    taken = sorted(label for labels in merge.values() for label in labels)
    if taken != list(range(LABELS)):
        raise ValueError(
            f"merge {path or 'atr_merge.json'}: every label of 0 to {LABELS - 1} belongs to one class, found {taken}"
        )
    return merge


class ATR(Dataset[dict[str, object]]):
    """A split of ATR as square pictures and merged masks.

    A picture that asks to be turned (EXIF) comes upright, and its mask with it. The mask's own EXIF decides; where it
    has none and the mask is as large as the stored picture, the picture's does.

    Args:
        root: folder with the layout above.
        split: "train", "val" or "test".
        size: pictures and masks are resized to ``size`` x ``size`` (the paper: 320), masks by the nearest pixel.
        merge: JSON file for :func:`load_merge`.
        skip_chictopia: leave out the ``dataset10k_*`` pictures, which common archives hold beyond the paper's 7,700.
        skip_bad: leave out pictures that can't be read, and list them in ``skipped``, instead of raising.

    Attributes:
        ids: stems of the files, in the list's order.
        class_names: names of the merged classes, by number.
        skipped: (file, reason) of pictures that were left out.

    Raises:
        ValueError: no such split or folder, an empty list, or without ``skip_bad`` an id without its files, a picture
            that can't be read, a mask of another size than its picture, or a label beyond 17; the message names the
            file.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        size: int = 320,
        merge: Path | None = None,
        skip_chictopia: bool = False,
        skip_bad: bool = False,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}; got {split!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.folder, self.size = Path(root) / "humanparsing", size
        classes = load_merge(merge)
        self.class_names = list(classes)
        table = torch.empty(LABELS, dtype=torch.int64)
        for number, merged in enumerate(classes.values()):
            table[merged] = number
        self._class_of_label = table
        self.skipped: list[tuple[Path, str]] = []
        self._mask_turns: dict[str, Turn] = {}
        listed = self._read_list(Path(root), split)
        names = [name for name in listed if not (skip_chictopia and name.startswith("dataset10k_"))]
        self.ids = []
        with ThreadPoolExecutor() as pool:
            for name, check in [(name, pool.submit(self._check, name)) for name in names]:
                try:
                    self._mask_turns[name] = check.result()
                except ValueError as error:
                    if not skip_bad:
                        pool.shutdown(cancel_futures=True)
                        raise
                    self.skipped.append((self._image_path(name), str(error)))
                else:
                    self.ids.append(name)
        if not self.ids:
            raise ValueError(f"no usable picture among the {len(listed)} ids of {split}_id.txt in {root}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        """The item: image uint8 (3, S, S), mask int64 (S, S) of merged classes, id."""
        return {"image": self.load_image(index), "mask": self.load_mask(index), "id": self.ids[index]}

    def load_image(self, index: int) -> Tensor:
        """The picture alone, uint8 (3, S, S)."""
        return stretched(self._image_path(self.ids[index]), lambda *_: (self.size, self.size))

    def load_images(self, indices: Sequence[int], threads: int = 1) -> list[Tensor]:
        """The pictures as by :meth:`load_image`, decoded together by DALI and left on the GPU if there is one."""
        dali = importlib.import_module("cmx_fast.data.media.decode_dali_files")
        paths = [self._image_path(self.ids[index]) for index in indices]
        decoded = dali.stretched(paths, lambda *_: (self.size, self.size), threads)
        return [
            self.load_image(index) if image is None else image
            for index, image in zip(indices, decoded, strict=True)
        ]

    def load_mask(self, index: int) -> Tensor:
        """The merged mask alone, int64 (S, S)."""
        name = self.ids[index]
        with Image.open(self._mask_path(name)) as mask:
            resized = labels(mask.resize((self.size, self.size), Image.Resampling.NEAREST))
        return self._class_of_label[self._mask_turns[name](torch.from_numpy(resized.astype(np.int64)))]

    @property
    def paths(self) -> list[Path]:
        """The pictures' files, in the order of ``ids``."""
        return [self._image_path(name) for name in self.ids]

    def _image_path(self, name: str) -> Path:
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def _mask_path(self, name: str) -> Path:
        return self.folder / "SegmentationClassAug" / f"{name}.png"

    def _read_list(self, root: Path, split: str) -> list[str]:
        if not self.folder.is_dir():
            raise ValueError(
                f"{root} has no folder humanparsing; it should hold JPEGImages, SegmentationClassAug"
            )
        for path in (root / f"{split}_id.txt", self.folder / f"{split}_id.txt"):
            if path.exists():
                return read_list(path)
        raise ValueError(f"there is no {split}_id.txt in {root} or {self.folder}")

    def _check(self, name: str) -> Turn:
        """Check a picture and its mask: readable, of one size, labels in range. Gives how the mask is to be turned.

        Damage within the pixels shows only when the picture is decoded.
        """
        sizes, turns = [], []
        for path in (self._image_path(name), self._mask_path(name)):
            try:
                with Image.open(path) as image:
                    turns.append(orientation(image))
                    sizes.append(image.size)
                    highest = labels(image).max() if path.suffix == ".png" else 0
                    image.load()
            except FileNotFoundError as error:
                raise ValueError(f"{path} is missing, though {name} is in the list") from error
            except DAMAGE as error:
                raise ValueError(f"{path} can't be read as an image: {error}") from error
            if highest >= LABELS:
                raise ValueError(f"{path} has label {highest}; ATR's go up to {LABELS - 1}")
        turn = turns[0] if turns[1] == UPRIGHT and sizes[0] == sizes[1] else turns[1]
        shown = turns[0].size(*sizes[0]), turn.size(*sizes[1])
        if shown[0] != shown[1]:
            raise ValueError(f"{path} is a mask of {shown[1]} pixels for a picture of {shown[0]}")
        return turn
