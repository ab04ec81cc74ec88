"""``cmx bench data DIR``: your own files, from file to normalised batch, by our loaders and by the loops people write.

All get the same clips: the same files and moments, the same windows, batches of one shape. Each contender works
through all of them in turn, several times over; the medians are shown. CPU time is that of this process and its
workers, user and system.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.loaders.clips import Clips
from cmx_fast.data.loaders.workers import load_batches
from cmx_fast.data.media.decode import read_frames, read_wave, unavailable
from cmx_fast.data.media.files import BrokenFileError, audio_problem, picture_problem
from cmx_fast.data.media.suffixes import PICTURES, SOUNDS, VIDEOS
from cmx_fast.data.sets.recordings import Recording, Recordings
from cmx_fast.data.transforms.clip_views import ClipViews

from . import loops

BACKENDS = {"pyav": "PyAV", "torchcodec": "TorchCodec", "dali": "DALI"}
WIDTH, BATCH, ROUNDS = 78, 16, 3
#: One pass over all clips, which yields the number of clips and the seconds waited for each batch.
Pass = Callable[[], Iterator[tuple[int, float]]]


@dataclass(frozen=True)
class Speed:
    """The speed of one contender: clips per second, CPU milliseconds per clip, and the share of time that it waited."""

    rate: float
    cpu: float
    waited: float


def cpu_seconds() -> float:
    """User and system seconds of this process and of the workers that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def compare(contenders: dict[str, Pass], rounds: int = ROUNDS) -> dict[str, Speed]:
    """Measure all contenders in turn, medians over the rounds.

    DALI comes after the others, since its pools make workers slower to start.
    """
    measured: dict[str, list[Speed]] = {name: [] for name in contenders}
    last = [name for name in contenders if "DALI" in name]
    for names in ([name for name in contenders if name not in last], last):
        for name, run in rounds * [(name, contenders[name]) for name in names]:
            gc.collect()  # workers of the pass before end here, not in this one's time
            used, began = cpu_seconds(), time.perf_counter()
            count, waited = 0, 0.0
            for clips, seconds in run():
                count, waited = count + clips, waited + seconds
            wall = time.perf_counter() - began
            gc.collect()
            measured[name].append(Speed(count / wall, 1000 * (cpu_seconds() - used) / count, waited / wall))
    return {
        name: Speed(
            *(statistics.median(getattr(s, part) for s in speeds) for part in ("rate", "cpu", "waited"))
        )
        for name, speeds in measured.items()
    }


def timed(batches: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Yield each batch with the seconds waited for it."""
    began = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - began
        began = time.perf_counter()


def plain(read: Callable[[Any], Any], things: list[Any]) -> Pass:
    """Read one clip after the other in this process, stacked to batches."""

    def run() -> Iterator[tuple[int, float]]:
        for place in range(0, len(things), BATCH):
            made = [read(thing) for thing in things[place : place + BATCH]]
            for parts in zip(*made, strict=True) if isinstance(made[0], tuple) else [made]:
                torch.stack(list(parts))
            yield len(made), 0.0

    return run


def through_workers(read: Callable[[Path], Tensor], paths: list[Path], workers: int) -> Pass:
    """Load plain files by our workers."""

    def run() -> Iterator[tuple[int, float]]:
        rows = [part.tolist() for part in torch.arange(len(paths)).split(BATCH)]
        for batch, waited in timed(load_batches(_Files(read, paths), rows, workers=workers)):
            yield len(batch), waited

    return run


def together(read: Callable[[list[Path]], Tensor], paths: list[Path]) -> Pass:
    """Load files by DALI, a batch at a time, in this process."""

    def run() -> Iterator[tuple[int, float]]:
        for place in range(0, len(paths), BATCH):
            yield len(read(paths[place : place + BATCH])), 0.0

    return run


class _Files(Dataset[Tensor]):
    def __init__(self, read: Callable[[Path], Tensor], paths: list[Path]):
        self.read, self.paths = read, paths

    def __getitem__(self, index: int) -> Tensor:
        return self.read(self.paths[index])


class Videos:
    """The same random clips of a folder's videos for every contender."""

    def __init__(self, paths: list[Path], count: int, seed: int, workers: int):
        chosen = [paths[place % len(paths)] for place in range(count)]
        self.recordings = Recordings([Recording(path, 0, path.stem) for path in chosen], ["any"])
        self.seed, self.workers = seed, workers
        self.loaders = {name: self._loader(name) for name in BACKENDS if not unavailable(name)}
        self.windows = self._draw(next(iter(self.loaders.values())))

    def _loader(self, backend: str) -> Clips:
        return Clips(
            self.recordings,
            frames=loops.FRAMES,
            fps=loops.FPS,
            seconds=loops.SECONDS,
            sample_rate=loops.SAMPLE_RATE,
            backend=backend,
            workers=self.workers,
        )

    def _batches(self, clips: Clips) -> Iterator[tuple[dict[str, Tensor], float]]:
        rows = torch.arange(len(clips)).split(BATCH)
        return timed(clips.load(rows, seed=self.seed, epoch=0))

    def _views(self, batch: dict[str, Tensor]) -> ClipViews:
        return ClipViews(batch["index"], batch["size"], seed=self.seed, epoch=0, crop=loops.CROP)

    def _draw(self, clips: Clips) -> list[loops.Window]:
        """Draw the loader's clips and windows; files that break are left out for all contenders."""
        windows = []
        for batch, _ in self._batches(clips):
            views = self._views(batch)
            for row, index in enumerate(batch["index"].tolist()):
                height, width = batch["size"][row].tolist()
                side = float(views.side[row])
                windows.append(
                    loops.Window(
                        clips.entries[index].path,
                        float(batch["start"][row]),
                        float(views.left[row]) / width,
                        float(views.top[row]) / height,
                        side / width,
                        side / height,
                        bool(views.mirrored[row]),
                    )
                )
        return windows

    def ours(self, backend: str) -> Pass:
        def run() -> Iterator[tuple[int, float]]:
            for batch, waited in self._batches(self.loaders[backend]):
                self._views(batch)(batch["frames"])
                yield len(batch["index"]), waited

        return run

    def contenders(self) -> dict[str, Pass]:
        ours = {f"ours, {BACKENDS[name]}": self.ours(name) for name in self.loaders}
        peers = {"pyav": ("PyAV loop", loops.by_pyav), "torchcodec": ("TorchCodec loop", loops.by_torchcodec)}
        return ours | {
            title: plain(read, self.windows) for name, (title, read) in peers.items() if name in self.loaders
        }

    def parts(self, backend: str) -> tuple[float, float, float]:
        """CPU milliseconds of one thread per clip: decoding the picture, decoding the sound, preparation."""
        picture = _cpu_of(
            lambda w: read_frames(w.path, w.moments, short_side=160, backend=backend), self.windows
        )
        by = "auto" if backend == "dali" else backend
        sound = _cpu_of(
            lambda w: read_wave(w.path, w.start, loops.SECONDS, loops.SAMPLE_RATE, backend=by), self.windows
        )
        batch, _ = next(self._batches(self.loaders[backend]))
        prepare = _cpu_of(lambda _: self._views(batch)(batch["frames"]), [None]) / len(batch["index"])
        return picture, sound, prepare


def _cpu_of(do: Callable[[Any], Any], things: list[Any]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    do(things[0])
    began = time.process_time()
    for thing in things[:BATCH]:
        do(thing)
    spent = time.process_time() - began
    torch.set_num_threads(threads)
    return 1000 * spent / len(things[:BATCH])


def speed_table(title: str, measured: dict[str, Speed], kind: str) -> Table:
    """A table with a line per contender, and the factor by which the first is faster."""
    result = Table("", f"{kind}/s", f"CPU ms/{kind[:-1]}", "first is faster", title=title, width=WIDTH)
    for column in result.columns[1:]:
        column.justify = "right"
    first = next(iter(measured.values())).rate
    for name, speed in measured.items():
        result.add_row(name, f"{speed.rate:.1f}", f"{speed.cpu:.1f}", f"{first / speed.rate:.2f}x")
    return result


def parts_table(videos: Videos, measured: dict[str, Speed]) -> Table:
    """A table of the parts of our time."""
    result = Table("CPU ms per clip", "picture", "sound", "preparation", "rest", "waiting", width=WIDTH)
    for column in result.columns[1:]:
        column.justify = "right"
    for backend in videos.loaders:
        name = f"ours, {BACKENDS[backend]}"
        spent = videos.parts(backend)
        rest = measured[name].cpu - sum(spent)
        result.add_row(name, *(f"{part:.1f}" for part in (*spent, rest)), f"{measured[name].waited:.0%}")
    return result


def readable(
    paths: list[Path], problem: Callable[[Path], str | None], read: Callable[[Path], Tensor]
) -> list[Path]:
    """The paths without those that break."""
    good = []
    for path in paths:
        if problem(path) is None:
            try:
                read(path)
            except BrokenFileError:
                continue
            good.append(path)
    return good


def bench_folder(folder: Path, clips: int, workers: int, seed: int) -> None:
    """Measure what a folder holds, ``clips`` files per round, and print tables.

    Raises:
        ValueError: it holds no videos, sounds or pictures.
    """
    console = Console(width=WIDTH, highlight=False, markup=False)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(seed).shuffle(files)
    kinds = {
        kind: [path for path in files if path.suffix.lower() in suffixes]
        for kind, suffixes in (("videos", VIDEOS), ("sounds", SOUNDS), ("pictures", PICTURES))
    }
    if not any(kinds.values()):
        raise ValueError(f"{folder} holds no files that end in {', '.join(VIDEOS + SOUNDS + PICTURES)}")
    if kinds["videos"]:
        _bench_videos(console, kinds["videos"], clips, seed, workers)
    # torchaudio reads files with TorchCodec.
    without_torchaudio = unavailable("torchcodec")
    sound_peers = {"soundfile loop": loops.by_soundfile}
    if not without_torchaudio:
        sound_peers["torchaudio loop"] = loops.by_torchaudio
    for kind, problem, ours, dali, peers in (
        ("sounds", audio_problem, loops.our_sound, loops.our_sounds_by_dali, sound_peers),
        (
            "pictures",
            picture_problem,
            loops.our_pictures,
            loops.our_pictures_by_dali,
            {"Pillow, torchvision loop": loops.by_torchvision},
        ),
    ):
        good = readable(kinds[kind][:clips], problem, ours)
        if good:
            chosen = [good[place % len(good)] for place in range(clips)]
            contenders = {"ours": through_workers(ours, chosen, workers)}
            contenders |= {title: plain(read, chosen) for title, read in peers.items()}
            if not unavailable("dali"):
                contenders["ours, DALI"] = together(dali, chosen)
            measured = compare(contenders)
            console.print(speed_table(f"{clips} {kind} of {len(good)} files", measured, kind))
            if kind == "sounds" and without_torchaudio:
                console.print(f"torchaudio loop left out: {without_torchaudio}")
        if len(good) < len(kinds[kind][:clips]):
            console.print(f"{len(kinds[kind][:clips]) - len(good)} {kind} left out: they can't be read")


def _bench_videos(console: Console, paths: list[Path], clips: int, seed: int, workers: int) -> None:
    videos = Videos(paths[:clips], clips, seed, workers)
    measured = compare(videos.contenders())
    sizes = Counter(f"{m.width}x{m.height}" for m in next(iter(videos.loaders.values())).media)
    common = ", ".join(size for size, _ in sizes.most_common(3))
    console.print(
        speed_table(f"{len(videos.windows)} clips, mostly {common}, {workers} workers", measured, "clips")
    )
    console.print(parts_table(videos, measured))
    console.print(
        f"A clip: {loops.FRAMES} frames at {loops.FPS} fps as float32 {loops.CROP}x{loops.CROP} and "
        f"{loops.SECONDS:g} s of sound at {loops.SAMPLE_RATE} Hz, batches of {BATCH}; waiting: the share of the time "
        "that this process waited for workers."
    )
    for name, title in BACKENDS.items():
        if reason := unavailable(name):
            console.print(f"{title} left out: {reason}")
    for path, reason in dict(next(iter(videos.loaders.values())).skipped).items():
        console.print(f"{path.name} left out: {reason}")
