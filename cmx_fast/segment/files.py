"""Label maps, overlays and the table of a folder of pictures.

labels/<picture>.png      the label of every pixel: an indexed PNG with the classes' colours, label 0 first
overlays/<picture>.jpg    the picture under its labels' colours
shares.csv                the share of each class in every picture, a column per label in order
segments.html             pictures and labels side by side
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError, stretched
from cmx_fast.evaluate import segmentation
from cmx_fast.train.picture_segmenter import PictureSegmenter

#: The most labels that an indexed picture can have.
MOST_LABELS = 256


@dataclass(frozen=True)
class Segmented:
    """A picture that has been segmented.

    Attributes:
        name: its path below its folder. overlay, labels: files that were written.
        shares: of each class, adding up to 1.
    """

    file: Path
    name: Path
    labels: Path
    overlay: Path
    shares: tuple[float, ...]


def segment_files(
    segmenter: PictureSegmenter,
    files: Sequence[tuple[Path, Path]],
    out: Path,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[Segmented], list[tuple[Path, str]]]:
    """Segment pictures and write their label maps and overlays; those that can't be decoded are left out.

    Args:
        files: pictures and their names, as :func:`names_below` gives them.
        advance: called after every picture.

    Returns:
        The pictures that were segmented, and the files left out with the reasons.

    Raises:
        ValueError: more labels than an indexed picture can have; or no picture could be decoded, some are named.
    """
    if len(segmenter.classes) > MOST_LABELS:
        raise ValueError(
            f"an indexed picture holds {MOST_LABELS} labels, the model has {len(segmenter.classes)}"
        )
    segmented, broken = [], []
    for file, name in files:
        try:
            labels = segmenter.segment_file(file)
            picture = stretched(file, lambda _, width, height: (width, height))
        except BrokenFileError as error:
            broken.append((file, error.reason))
        else:
            segmented.append(_write(file, name, picture, labels, len(segmenter.classes), out))
        advance()
    if not segmented:
        named = "; ".join(f"{path}: {reason}" for path, reason in broken[:3])
        raise ValueError(f"none of the {len(broken)} pictures can be used ({named})")
    return segmented, broken


def _write(file: Path, name: Path, picture: Tensor, labels: Tensor, classes: int, out: Path) -> Segmented:
    """Write the label map and the overlay of a picture (3, H, W)."""
    maps, overlays = (
        out / kind / f"{name}{suffix}" for kind, suffix in (("labels", ".png"), ("overlays", ".jpg"))
    )
    for path in (maps, overlays):
        path.parent.mkdir(parents=True, exist_ok=True)
    indexed = Image.fromarray(labels.to(torch.uint8).numpy()).convert("P")
    indexed.putpalette([value for colour in segmentation.palette(classes) for value in colour])
    indexed.save(maps, optimize=True)
    overlay(picture, labels, classes).save(overlays, quality=90)
    return Segmented(file, name, maps, overlays, shares(labels, classes))


def shares(labels: Tensor, classes: int) -> tuple[float, ...]:
    """Each class's share of the pixels of a label map (H, W); they add up to 1."""
    counts = torch.bincount(labels.flatten(), minlength=classes)
    return tuple((counts.double() / labels.numel()).tolist())


def overlay(picture: Tensor, labels: Tensor, classes: int) -> Image.Image:
    """A picture (3, H, W) uint8 and the colours of its labels (H, W), half and half."""
    colours = segmentation.colour(labels, classes).numpy()
    mixed = (picture.permute(1, 2, 0).numpy().astype(np.uint16) + colours) // 2
    return Image.fromarray(mixed.astype(np.uint8))


def names_below(files: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """The path of each file below its folder; of several folders each path begins with its folder's name.

    Raises:
        ValueError: two files would have the same name.
    """
    taken: dict[Path, Path] = {}
    for file in files:
        folder = next(folder for folder in folders if file.is_relative_to(folder.absolute()))
        name = file.relative_to(folder.absolute())
        name = name if len(folders) == 1 else folder.absolute().name / name
        if name in taken:
            raise ValueError(
                f"{taken[name]} and {file} would both be written as {name}: take them one by one"
            )
        taken[name] = file
    return list(taken)


def write_shares(file: Path, segmented: Sequence[Segmented], classes: Sequence[str]) -> None:
    """Write the table of shares: a row per picture, a column per class."""
    with open(file, "w", newline="", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(["picture", *classes])
        for picture in segmented:
            writer.writerow([picture.name, *(f"{share:.4f}" for share in picture.shares)])
