"""``cmx simulate people``: a small stand-in for ATR, in its own layout, with exact masks."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from cmx_fast.simulate.people.renderer import render_person

#: Colours of the masks' labels when a picture viewer opens them.
PALETTE = np.random.default_rng(7).integers(40, 256, (18, 3), dtype=np.uint8)
PALETTE[0] = 0
JPEG_QUALITY = 92


def _write_person(index: int, size: int, seed: int, folder: Path) -> None:
    picture, mask = render_person(np.random.default_rng([seed, index]), size)
    mask.putpalette(PALETTE.tobytes())
    picture.save(folder / "JPEGImages" / f"{index + 1}_1.jpg", quality=JPEG_QUALITY)
    mask.save(folder / "SegmentationClassAug" / f"{index + 1}_1.png")


def simulate_people(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    people: Annotated[
        int, typer.Option(min=5, help="Number of pictures: 4 of 5 train, 1 of 20 val, the rest test.")
    ] = 400,
    size: Annotated[
        int, typer.Option(min=32, help="Width of the pictures in pixels; they are twice as high.")
    ] = 112,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; does not change what is written.")] = 2,
    overwrite: Annotated[bool, typer.Option(help="Replace what is in the folder.")] = False,
) -> None:
    """Simulate people: pictures of dressed figures before clutter, with exact part masks, in ATR's layout.

    Every picture is another person: pose, build, clothes, colours, light and background. Writes
    humanparsing/JPEGImages/*.jpg, humanparsing/SegmentationClassAug/*.png (indexed, labels 0 to 17) and
    {train,val,test}_id.txt.
    """
    if people < 5 or size < 32 or workers < 1:
        raise ValueError(
            f"people ({people}) must be at least 5, size ({size}) at least 32 and workers ({workers}) at least 1"
        )
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"out: {out} is not empty; choose another folder or pass --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there whole: an interrupted run leaves nothing that looks complete.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        root = Path(temporary) / "people"
        folder = root / "humanparsing"
        for name in ("JPEGImages", "SegmentationClassAug"):
            (folder / name).mkdir(parents=True)
        write = functools.partial(_write_person, size=size, seed=seed, folder=folder)
        with ProcessPoolExecutor(min(workers, people), mp_context=get_context("spawn")) as pool:
            written = pool.map(write, range(people), chunksize=8)
            for _ in track(written, "people", total=people):
                pass
        train, val = min(people * 4 // 5, people - 2), max(1, people // 20)  # every part has one at least
        parts = {"train": range(train), "val": range(train, train + val), "test": range(train + val, people)}
        for split, indices in parts.items():
            (root / f"{split}_id.txt").write_text("".join(f"{index + 1}_1\n" for index in indices))
        if out.exists():
            shutil.rmtree(out)
        os.replace(root, out)
    typer.echo(
        f"{people} pictures of people in {out}: " + ", ".join(f"{len(i)} {s}" for s, i in parts.items())
    )
