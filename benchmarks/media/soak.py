"""Measures memory while clips are loaded: ``python -m benchmarks.media.soak [--clips 10000]``.

Simulates a few small videos, damages some of them, and loads clips of all by worker processes that live from the first
to the last; some files are cut or deleted on the way. Prints the resident memory of this process and of its workers
(summed, pages that they share counted in each) and the loader's reasons for the bad files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.sets.recordings import Recording, Recordings
from cmx_fast.data.transforms.clip_views import ClipViews
from cmx_fast.simulate.commands import simulate_clips

BATCH, FILES = 8, 16


@dataclass(frozen=True)
class Memory:
    """The resident megabytes after so many clips."""

    clips: int
    process: float
    workers: float


def resident(process: int) -> float:
    """The resident megabytes of a process, by /proc."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return 0.0  # it has just ended


def bad_folder(folder: Path, seed: int) -> list[Path]:
    """Write videos of which every other has a damaged sibling: text, cut, emptied, or with bytes overwritten."""
    simulate_clips(out=folder, clips=FILES, seconds=2.0, workers=1, seed=seed)
    good = sorted(folder.rglob("*.mp4"))[:FILES]  # it writes a test part, too
    draw = random.Random(seed)
    bad = []
    for number, path in enumerate(good[::2]):
        copy = path.with_stem(f"{path.stem}_bad")
        content = bytearray(path.read_bytes())
        match number % 4:
            case 0:
                content = bytearray(b"not a video")
            case 1:
                content = content[: len(content) // 2]
            case 2:
                content.clear()
            case 3:  # shows only on decoding
                begin = content.index(b"mdat") + 4
                size = int.from_bytes(content[begin - 8 : begin - 4], "big") - 8
                content[begin : begin + size] = draw.randbytes(size)
        copy.write_bytes(content)
        bad.append(copy)
    return good + bad


def soak(folder: Path, clips: int, *, workers: int, every: int, seed: int = 0) -> tuple[list[Memory], Clips]:
    """Load so many clips in one go; returns the memory after each ``every`` of them, and the loader."""
    files = bad_folder(folder, seed)
    repeated = [files[place % len(files)] for place in range(clips)]
    loader = Clips(
        Recordings([Recording(path, 0, path.stem) for path in repeated], ["any"]),
        frames=8,
        fps=15,
        seconds=0.5,
        short_side=64,
        workers=workers,
    )
    order = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(-(-clips // BATCH)):
            yield torch.randperm(len(loader), generator=order)[:BATCH]

    memory: list[Memory] = []
    done = 0
    for batch in loader.load(batches(), seed=seed, epoch=0):
        ClipViews(batch["index"], batch["size"], seed=seed, epoch=0, crop=48)(batch["frames"])
        before, done = done, done + len(batch["index"])
        if done // every > before // every:
            children = [child.pid for child in multiprocessing.active_children() if child.pid]
            memory.append(Memory(done, resident(os.getpid()), sum(map(resident, children))))
        if before < clips // 4 <= done:
            files[0].unlink()
        if before < clips // 3 <= done:
            os.truncate(files[1], files[1].stat().st_size // 2)
    return memory, loader


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Load many clips from a folder with bad files; print the memory."
    )
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        memory, loader = soak(
            folder / "clips",
            arguments.clips,
            workers=arguments.workers,
            every=max(1, arguments.clips // 10),
        )
    finally:
        shutil.rmtree(folder)
    print(f"{'clips':>8}{'process MB':>12}{'workers MB':>12}")
    for row in memory:
        print(f"{row.clips:8}{row.process:12.1f}{row.workers:12.1f}")
    for path, reason in dict(loader.skipped).items():
        print(f"{path.name}: {reason}")


if __name__ == "__main__":
    main()
