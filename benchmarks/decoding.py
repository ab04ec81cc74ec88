"""Decoding on one core: ``python -m benchmarks.decoding DIR`` (installed: ``cmx_fast.benchmarks.decoding``).

Cuts the same random clips out of the videos below DIR with every backend that is installed, in turns, and prints
clips per second: the pictures of one second at 30 fps, and one second of sound at 24 kHz beside them.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from cmx_fast.data.decode import BrokenVideoError, Media, probe, read_frames, read_wave, unavailable

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
FPS, SAMPLE_RATE = 30, 24000
# name, backend, distribution
CONTENDERS = (
    ("PyAV", "pyav", "av"),
    ("TorchCodec", "torchcodec", "torchcodec"),
    ("DALI", "dali", "nvidia-dali-cuda130"),
)
WIDTH = 78


@dataclass(frozen=True)
class Moment:
    """One second of a video."""

    path: Path
    media: Media
    start: float

    def pictures(self, backend: str, short_side: int) -> None:
        times = [self.start + k / FPS for k in range(FPS)]
        read_frames(self.path, times, short_side=short_side, backend=backend)

    def sound(self, backend: str) -> None:
        read_wave(self.path, self.start, 1.0, SAMPLE_RATE, backend=backend)


def find(folder: Path, clips: int, seed: int) -> tuple[list[Moment], dict[Path, str]]:
    """That many random seconds of the videos below a folder, and what can't be used of them.

    Raises:
        ValueError: there is no video that lasts a second.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    draw = random.Random(seed)
    draw.shuffle(paths)
    media: dict[Path, Media] = {}
    broken: dict[Path, str] = {}
    for path in paths[: 4 * clips]:
        if len(media) == clips:
            break
        try:
            about = probe(path, audio=False)
        except BrokenVideoError as error:
            broken[path] = error.reason
            continue
        if about.seconds < 1.1:
            broken[path] = "too short"
        else:
            media[path] = about
    if not media:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in list(broken.items())[:3])
        raise ValueError(f"{folder} holds no video of a second or more ({', '.join(SUFFIXES)}); {reasons}")
    chosen = [list(media.items())[i % len(media)] for i in range(clips)]
    return [Moment(path, m, m.start + draw.random() * (m.seconds - 1.05)) for path, m in chosen], broken


def compare(
    moments: list[Moment], backends: list[str], short_side: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per clip of each backend, pictures and sound, each clip by all of them in turn."""
    pictures: defaultdict[str, list[float]] = defaultdict(list)
    sounds: defaultdict[str, list[float]] = defaultdict(list)
    for moment in moments:
        for backend in backends:
            pictures[backend] += _timed(partial(moment.pictures, backend, short_side))
            if backend != "dali":
                sounds[backend] += _timed(partial(moment.sound, backend))
    return pictures, sounds


def _timed(decode: Callable[[], None]) -> list[float]:
    """How long it took; nothing where the file can't be decoded."""
    begin = time.perf_counter()
    try:
        decode()
    except BrokenVideoError:
        return []
    return [time.perf_counter() - begin]


def table(moments: list[Moment], backends: dict[str, str], short_side: int) -> Table:
    """Decode with ``backends`` (name to what is shown of it) and say how fast each was."""
    compare(moments[:1], list(backends), short_side)  # loads libraries, builds pipelines
    pictures, sounds = compare(moments, list(backends), short_side)
    result = Table("", "version", "pictures", "and sound", "decoded", title="Clips per second of one core")
    for column in result.columns[2:]:
        column.justify = "right"
    for _, backend, distribution in CONTENDERS:
        if backend in backends:
            seen, heard = pictures[backend], sounds[backend]
            alone = sum(seen) / len(seen) if seen else None
            both = alone + sum(heard) / len(heard) if alone and heard else None
            result.add_row(
                backends[backend],
                metadata.version(distribution),
                f"{1 / alone:.1f}" if alone else "-",
                f"{1 / both:.1f}" if both else "-",
                f"{len(seen)} of {len(moments)}",
            )
    return result


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of videos.", exists=True, file_okay=False)],
    clips: Annotated[int, typer.Option(help="How many clips, of as many files as there are.", min=1)] = 50,
    short_side: Annotated[int, typer.Option(help="Pixels of the shorter side.", min=1)] = 160,
    seed: Annotated[int, typer.Option(help="Which files and moments.")] = 0,
) -> None:
    """Decode random seconds of your own videos with TorchCodec, DALI and PyAV on one core."""
    console = Console(width=WIDTH, highlight=False, markup=False)
    missing = {name: unavailable(backend) for name, backend, _ in CONTENDERS}
    gpu = torch.cuda.is_available()
    backends = {
        backend: f"{name} on the GPU" if gpu and backend == "dali" else name
        for name, backend, _ in CONTENDERS
        if not missing[name]
    }
    if not backends:
        raise typer.BadParameter("; ".join(filter(None, missing.values())))
    moments, broken = find(folder, clips, seed)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    console.print(table(moments, backends, short_side))
    files = {moment.path: moment.media for moment in moments}
    sizes = Counter(f"{media.width}x{media.height}" for media in files.values())
    common = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
    console.print(
        f"{len(moments)} clips of {len(files)} files, mostly {common}: {FPS} frames resized to {short_side} pixels "
        f"and 1 s of sound at {SAMPLE_RATE} Hz. DALI takes no sound out of videos."
    )
    for name, reason in missing.items():
        if reason:
            console.print(f"{name} left out: {reason}")
    for path, reason in broken.items():
        console.print(f"{path.name} left out: {reason}")


if __name__ == "__main__":
    typer.run(main)
