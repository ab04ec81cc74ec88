"""Differences between picture files: the way up, 16 bits, palettes, bytes behind their end.

docs/media.md has the whole list.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

#: The errors that Pillow raises about a damaged picture, as it is opened or decoded.
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Turn(NamedTuple):
    """The way from stored to upright pixels: mirrored or not, then turned by quarters counterclockwise."""

    mirrored: bool = False
    quarters: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size after the turn of a picture of ``width`` x ``height``, or before the turn to that size."""
        return (height, width) if self.quarters % 2 else (width, height)

    def __call__(self, pixels: Tensor) -> Tensor:
        """``(..., h, w)`` upright."""
        return torch.rot90(pixels.flip(-1) if self.mirrored else pixels, self.quarters, (-2, -1))


UPRIGHT = Turn()
_ORIENTATION = 0x0112
#: By EXIF's number.
_TURNS = {
    2: Turn(True, 0),
    3: Turn(False, 2),
    4: Turn(True, 2),
    5: Turn(True, 1),
    6: Turn(False, 3),
    7: Turn(True, 3),
    8: Turn(False, 1),
}


def orientation(image: Image.Image) -> Turn:
    """The turn that an opened file asks for (EXIF). Pillow turns TIFF files itself.

    A damaged EXIF block asks for none: the picture itself is not damaged by it. A PNG file is decoded: Pillow looks for
    EXIF behind its pixels.

    Raises:
        one of DAMAGE: a PNG file's pixels are damaged.
    """
    if image.format == "TIFF":
        return UPRIGHT
    if image.format == "PNG":
        image.load()  # else getexif() does, and after a failure that is caught here the pixels would be blank
    try:
        number = image.getexif().get(_ORIENTATION)
    except (*DAMAGE, struct.error, KeyError, TypeError, IndexError):
        return UPRIGHT
    return _TURNS.get(number, UPRIGHT) if isinstance(number, int) else UPRIGHT


def rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB of 8 bits, as stored: transparency and colour profiles are left out of account.

    The upper 8 of 16 bits count, in grey pictures as in colour ones, which Pillow reads so.

    Raises:
        ValueError: pixels of 32 bits, whose black and white are not known.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("has pixels of 32 bits, of which no range is known; store it with 8 or 16 bits")
    return image.convert("RGB")


def labels(image: Image.Image) -> NDArray[Any]:
    """The numbers (h, w) in a mask, as stored: a palette's indices, or grey levels.

    Raises:
        ValueError: the mask has colours, which are no numbers.
    """
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise ValueError(f"holds colours ({image.mode}), no labels; store it with a palette or in grey")
    return np.asarray(image)


def cut_short(path: Path, kind: str | None) -> bool:
    """True for a file of Pillow's format ``kind`` without its end, which may have other bytes behind it."""
    end = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "")
    if end is None:
        return False
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - 1024))
        if end in stream.read():
            return False
        stream.seek(0)
        return _endless_png(stream) if kind == "PNG" else _endless_jpeg(stream.read())


def _endless_png(stream: Any) -> bool:
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        if head[4:] == b"IEND":
            return False
        stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return True


#: The markers that begin a segment and end compressed data: neither a stuffed zero, a restart, nor a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)


def _endless_jpeg(content: bytes) -> bool:
    """True for JPEG bytes without an end; goes from segment to segment, since a thumbnail has an end of its own."""
    place = 2
    while (marker := _MARKER.search(content, place)) is not None:
        if marker[0] == b"\xff\xd9":
            return False
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return True
