"""The page of ``cmx demo-page`` as a Flask application: a dropped file in, pictures and sounds out.

Everything is in the page itself, as data URIs: nothing comes from elsewhere, and no file of the machine has an address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cmx_fast._extras import require
from cmx_fast.data.media.files import BrokenFileError, stretched
from cmx_fast.evaluate import figures, segmentation
from cmx_fast.evaluate.pages import render
from cmx_fast.search.embedders import KINDS, Embedder, kind_of
from cmx_fast.search.index import Index
from cmx_fast.search.page import media_card
from cmx_fast.segment.files import overlay, shares
from cmx_fast.train.picture_segmenter import PictureSegmenter

#: Bytes of the largest file that is taken.
LARGEST = 500 * 2**20
#: Files that a search finds.
FOUND = 8
#: Pixels of a segmented picture's longer side.
SIZE = 640

#: From a file and its kind to what the page shows of it.
Answer = Callable[[Path, str], dict[str, Any]]


def new_app(title: str, kinds: Sequence[str], answer: Answer) -> Any:
    """The application, a ``flask.Flask``.

    Args:
        kinds: of :data:`KINDS`, that files may be of.

    Raises:
        MissingExtraError: Flask is not installed.
    """
    flask = require("flask", "demo")
    app = flask.Flask(__name__)
    # Of names: a site that has its name lead here could otherwise read the page.
    app.config.update(MAX_CONTENT_LENGTH=LARGEST, TRUSTED_HOSTS=["127.0.0.1", "localhost"])
    suffixes = [suffix for kind in kinds for suffix in KINDS[kind]]

    def page(status: int = 200, **values: Any) -> tuple[str, int]:
        empty = dict.fromkeys(("problem", "name", "query", "found", "segmented"))
        shown = {**empty, **values}
        return render("demo/page.html.j2", title=title, kinds=kinds, suffixes=suffixes, **shown), status

    @app.get("/")
    def start() -> tuple[str, int]:
        return page()

    @app.post("/")
    def answered() -> tuple[str, int]:
        upload = flask.request.files.get("file")
        if upload is None or not upload.filename:
            return page(400, problem="choose a file first")
        name = Path(upload.filename).name
        kind = kind_of(Path(name))
        if kind is None or kind not in kinds:
            return page(400, problem=f"{name} is none of {', '.join(suffixes)}")
        with TemporaryDirectory() as folder:
            file = Path(folder, f"file{Path(name).suffix.lower()}")
            upload.save(file)
            try:
                return page(name=name, **answer(file, kind))
            except BrokenFileError as error:
                return page(400, problem=f"{name}: {error.reason}".replace(str(file), name))

    return app


def searching(embedder: Embedder, index: Index) -> Answer:
    """Finds the nearest files of the index: of other kinds than the dropped one's, where it has them."""

    def answer(file: Path, kind: str) -> dict[str, Any]:
        row = embedder.embed(file, kind)
        found = index.nearest(row, FOUND, set(index.kinds) - {kind} or {kind})
        cards = [
            {**media_card(index.files[number], index.kinds[number]), "cosine": cosine}
            for number, cosine in found
        ]
        return {"query": {**media_card(file, kind), "path": None}, "found": cards}

    return answer


def segmenting(segmenter: PictureSegmenter) -> Answer:
    """Lays the classes' colours over the dropped picture, and counts their shares."""
    count = len(segmenter.classes)
    colours = [f"rgb{colour}" for colour in segmentation.palette(count)]

    def answer(file: Path, kind: str) -> dict[str, Any]:
        labels = segmenter.segment_file(file)
        picture = stretched(file, lambda _, width, height: (width, height))
        laid = overlay(picture, labels, count)
        laid.thumbnail((SIZE, SIZE))
        rows = sorted(zip(shares(labels, count), segmenter.classes, colours, strict=True), reverse=True)
        shown = [row for row in rows if row[0] >= 0.001]
        return {
            "segmented": {
                "picture": figures.small_picture(file, SIZE),
                "overlay": figures.jpeg(laid),
                "shares": shown,
            }
        }

    return answer
