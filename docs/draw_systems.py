"""Draws the pictures of docs/systems from runs' reports: ``python docs/draw_systems.py csir runs/csir/report.html``."""

from __future__ import annotations

import argparse
import base64
import io
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

FOLDER = Path(__file__).parent / "pictures"
SIDE, GAP, FRAME = 104, 8, 4
BACKGROUND, INK = "white", "#444444"
COLOURS = {"right": "#15803d", "wrong": "#b91c1c"}
PICTURE = r'<img src="data:image/\w+;base64,([\w+/=]+)"'


def decoded(content: str) -> Image.Image:
    """A picture of a report, on a square of SIDE pixels."""
    picture = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    return ImageOps.pad(picture, (SIDE, SIDE), color=BACKGROUND)


def sheet(rows: list[list[Image.Image]], heads: list[str]) -> Image.Image:
    """Rows of pictures under the heads of their columns."""
    font, step = ImageFont.load_default(13), SIDE + GAP
    top = 38 if any("\n" in head for head in heads) else 22
    result = Image.new("RGB", (len(heads) * step + GAP, top + len(rows) * step + GAP), BACKGROUND)
    draw = ImageDraw.Draw(result)
    for column, head in enumerate(heads):
        draw.text((GAP + column * step + SIDE / 2, top / 2 + 2), head, INK, font, anchor="mm", align="center")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            result.paste(picture, (GAP + column * step, top + row * step))
    return result


def csir(report: str) -> Image.Image:
    """The pictures that four sentences find, best first, framed green where the room is the sentence's."""
    answers = re.findall(
        rf'<div class="card (right|wrong)">{PICTURE}', report.split("<h3>Image-to-speech")[0]
    )
    framed = []
    for verdict, content in answers:
        inner = ImageOps.contain(decoded(content), (SIDE - 2 * FRAME, SIDE - 2 * FRAME))
        framed.append(ImageOps.expand(inner, FRAME, COLOURS[verdict]))
    rows = [framed[start : start + 5] for start in range(0, len(framed), 5)]
    return sheet(rows, ["nearest", "second", "third", "fourth", "fifth"])


def strips(report: str) -> Image.Image:
    """The first rows of a report's strips: the pictures, and beside each the truth and the models' maps."""
    strips = report.split('<div class="strips">')[1].split("</section>")[0]
    heads = [head.replace(" by ", "\nby ") for head in re.findall(r'<div class="head">(.*?)</div>', strips)]
    pictures = [decoded(content) for content in re.findall(PICTURE, strips)]
    rows = [pictures[start : start + len(heads)] for start in range(0, len(pictures), len(heads))]
    return sheet(rows[:4], heads)


def sound2scene(report: str) -> Image.Image:
    """The first scenes of a report: the frame, and the pictures made of it and of its sound with three noises."""
    grid = report.split('<div class="grid one">')[1].split("</section>")[0]
    pictures = [decoded(content) for content in re.findall(PICTURE, grid)]
    heads = ["frame", "made of\nthe frame", "made of\nthe sound", "again", "again", "retrieved"]
    rows = [pictures[start : start + len(heads)] for start in range(0, len(pictures), len(heads))]
    return sheet(rows[:4], heads)


SYSTEMS = {"csir": csir, "cmac": strips, "c2l": strips, "sound2scene": sound2scene}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("report", type=Path)
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    SYSTEMS[arguments.system](arguments.report.read_text()).save(
        FOLDER / f"{arguments.system}.jpg", quality=85, optimize=True
    )
