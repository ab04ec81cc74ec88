"""The page of segmented pictures: each beside its labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from cmx_fast.evaluate import figures, segmentation
from cmx_fast.evaluate.pages import render
from cmx_fast.segment.files import Segmented

#: Pixels of a picture's longer side on the page.
SIZE = 320
#: Pictures on the page; the others are in their files.
SHOWN = 100


def write_page(page: Path, segmented: Sequence[Segmented], classes: Sequence[str], title: str) -> None:
    """Write the page; small copies of the pictures are in it, and links to the label maps."""
    colours = [f"rgb{colour}" for colour in segmentation.palette(len(classes))]
    html = render(
        "segment/segments.html.j2",
        title=title,
        legend=list(zip(classes, colours, strict=True)),
        pictures=[_card(picture, page.parent, classes, colours) for picture in segmented[:SHOWN]],
        left=max(0, len(segmented) - SHOWN),
    )
    page.write_text(html)


def _card(picture: Segmented, folder: Path, classes: Sequence[str], colours: Sequence[str]) -> dict[str, Any]:
    shares = sorted(zip(picture.shares, classes, colours, strict=True), reverse=True)
    return {
        "name": str(picture.name),
        "picture": figures.small_picture(picture.file, SIZE),
        "overlay": figures.jpeg(_small(Image.open(picture.overlay))),
        "labels": figures.png(_small(Image.open(picture.labels).convert("RGB"))),
        "link": quote(os.fsencode(picture.labels.relative_to(folder))),
        "shares": [(share, name, colour) for share, name, colour in shares if share >= 0.005],
    }


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((SIZE, SIZE))
    return image
