"""A small stand-in for ATR, in its own layout, with exact masks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from rich.progress import track

from cmx_fast.simulate.people.renderer import render_person
from cmx_fast.simulate.processes import each

#: Colours of the masks' labels when a picture viewer opens them.
PALETTE = np.random.default_rng(7).integers(40, 256, (18, 3), dtype=np.uint8)
PALETTE[0] = 0
JPEG_QUALITY = 92


def _write_person(index: int, size: int, seed: int, folder: Path) -> None:
    picture, mask = render_person(np.random.default_rng([seed, index]), size)
    mask.putpalette(PALETTE.tobytes())
    picture.save(folder / "JPEGImages" / f"{index + 1}_1.jpg", quality=JPEG_QUALITY)
    mask.save(folder / "SegmentationClassAug" / f"{index + 1}_1.png")


def write_people(folder: Path, people: int, size: int, *, seed: int, workers: int) -> dict[str, int]:
    """Write pictures of so many people into an empty folder, in ATR's layout; gives the pictures of each split.

    ``workers`` processes don't change what is written.
    """
    pictures = folder / "humanparsing"
    for name in ("JPEGImages", "SegmentationClassAug"):
        (pictures / name).mkdir(parents=True)
    write = functools.partial(_write_person, size=size, seed=seed, folder=pictures)
    for _ in track(each(write, range(people), workers), "people", total=people):
        pass
    train, val = min(people * 4 // 5, people - 2), max(1, people // 20)  # every part has one at least
    parts = {"train": range(train), "val": range(train, train + val), "test": range(train + val, people)}
    for split, indices in parts.items():
        (folder / f"{split}_id.txt").write_text("".join(f"{index + 1}_1\n" for index in indices))
    return {split: len(indices) for split, indices in parts.items()}
