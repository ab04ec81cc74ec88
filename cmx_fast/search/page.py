"""The page of a search: the query and what was found, to be seen and heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cmx_fast.data.media.decode import probe, read_frames, read_wave
from cmx_fast.data.media.files import BrokenFileError, centred, read_audio
from cmx_fast.evaluate import figures
from cmx_fast.evaluate.pages import render

SIZE = 240
SAMPLE_RATE = 22050
#: Seconds of a sound that the page plays.
SECONDS = 10.0


def write_page(page: Path, query: tuple[Path, str], found: Sequence[tuple[Path, str, float]]) -> None:
    """Write the page; the files' pictures and the first seconds of their sounds are in it.

    Args:
        query: file and kind. found: file, kind and cosine of each, best first.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    cards = [{**media_card(file, kind), "cosine": cosine} for file, kind, cosine in found]
    page.write_text(render("search/search.html.j2", query=media_card(*query), found=cards))


def media_card(file: Path, kind: str) -> dict[str, str | None]:
    """Name and path of a file, its picture and its sound as data URIs; None where it has none, or can't be read now."""
    card: dict[str, str | None] = {"name": file.name, "path": str(file), "picture": None, "sound": None}
    try:
        if kind == "image":
            card["picture"] = figures.picture(file, SIZE)
        elif kind == "audio":
            card["sound"] = figures.sound(
                read_audio(file, SAMPLE_RATE, round(SECONDS * SAMPLE_RATE)), SAMPLE_RATE
            )
        else:
            media = probe(file)
            (frame,) = read_frames(file, [media.start + media.seconds / 2], short_side=SIZE)
            card["picture"] = figures.jpeg(Image.fromarray(centred(frame, SIZE).permute(1, 2, 0).numpy()))
            wave = read_wave(file, media.start, min(SECONDS, media.seconds), SAMPLE_RATE)
            card["sound"] = figures.sound(wave, SAMPLE_RATE)
    except BrokenFileError as error:
        card["path"] = f"{file}: {error.reason}"
    return card
