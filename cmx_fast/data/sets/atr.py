"""ATR: pictures of people with masks of 18 labels, in the data set's own layout.

::

    <root>/humanparsing/JPEGImages/<id>.jpg
    <root>/humanparsing/SegmentationClassAug/<id>.png    indexed, labels 0 to 17
    <root>/train_id.txt, val_id.txt, test_id.txt         one id per line; here or in humanparsing/

The labels are 0 background, 1 hat, 2 hair, 3 sunglasses, 4 upper clothes, 5 skirt, 6 pants, 7 dress, 8 belt, 9 left and
10 right shoe, 11 face, 12 left and 13 right leg, 14 left and 15 right arm, 16 bag, 17 scarf.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch

from cmx_fast.data.sets.lists import read_list, read_text
from cmx_fast.data.sets.masked_pictures import MaskedPictures
from cmx_fast.data.sets.recordings import check_split

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


class ATR(MaskedPictures):
    """A split of ATR as square pictures and merged masks.

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
        check_split(split, SPLITS)
        classes = load_merge(merge)
        table = torch.empty(LABELS, dtype=torch.int64)
        for number, merged in enumerate(classes.values()):
            table[merged] = number
        base = Path(root) / "humanparsing"
        listed = _listed(Path(root), split)
        if skip_chictopia:
            listed = [name for name in listed if not name.startswith("dataset10k_")]
        super().__init__(
            [
                (name, base / "JPEGImages" / f"{name}.jpg", base / "SegmentationClassAug" / f"{name}.png")
                for name in listed
            ],
            table,
            list(classes),
            size=size,
            skip_bad=skip_bad,
            source=f"ids of {split}_id.txt in {root}",
            kind="ATR's",
            void=None,
        )


def _listed(root: Path, split: str) -> list[str]:
    """The ids of a split's list."""
    base = root / "humanparsing"
    if not base.is_dir():
        raise ValueError(
            f"{root} has no folder humanparsing; it should hold JPEGImages, SegmentationClassAug"
        )
    for path in (root / f"{split}_id.txt", base / f"{split}_id.txt"):
        if path.exists():
            return read_list(path)
    raise ValueError(f"there is no {split}_id.txt in {root} or {base}")
