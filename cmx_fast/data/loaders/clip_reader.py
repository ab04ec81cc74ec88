"""Cuts clips out of files in loader workers, for ``clips``; recordings that break are replaced."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from cmx_fast.data.media.decode import BrokenVideoError, Media, read_frames, read_wave

#: Frames (clips, T, 3, h, w) and 16-bit sound (clips, samples) of one recording.
Cut = tuple[Tensor, Tensor]
#: Random streams of a recording in an epoch: where its clip begins, what takes its place, how the clip is augmented.
WHERE, INSTEAD, AUGMENTED = 0, 1, 2


def random_stream(seed: int, epoch: int, index: int, stream: int) -> torch.Generator:
    """The generator of one of a recording's random streams."""
    number = ((seed * 1_000_003 + epoch) * 1_000_003 + index) * 1_000_003 + stream
    return torch.Generator().manual_seed(number % 2**63)


@dataclass(frozen=True)
class ClipFormat:
    """The settings of :class:`cmx_fast.data.loaders.clips.Clips`; ``samples`` is 0 without sound.

    ``loop``: pictures of a recording that is shorter than a clip begin again from its start.
    """

    frames: int
    fps: float
    samples: int
    sample_rate: int
    short_side: int
    backend: str
    loop: bool = False

    @property
    def seconds(self) -> float:
        """The length of a clip: its pictures' or its sound's, whichever is longer."""
        return max(self.frames / self.fps, self.samples / self.sample_rate)

    def starts(self, media: Media) -> int:
        """The number of places of the grid of 1 / fps at which a clip of this recording can begin."""
        return 1 + max(0, int((media.seconds - self.seconds) * self.fps + 1e-6))


@dataclass
class Source:
    """Recordings to cut clips from: files, or the ``kept`` frames (F, 3, h, w), or maps of them, and sound of each."""

    paths: list[Path]
    media: list[Media]
    format: ClipFormat
    threads: int
    kept: dict[int, Cut] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)

    def start(self, index: int, place: int) -> float:
        """Seconds on the recording's clock of a place on the grid."""
        return self.media[index].start + place / self.format.fps

    def moment(self, index: int, place: int) -> float:
        """The second at which the frame of a place on the grid is shown: of a recording that loops, within it."""
        seconds = place / self.format.fps
        media = self.media[index]
        if self.format.loop and media.seconds < self.format.seconds:
            seconds %= media.seconds
        return media.start + seconds

    def cut(self, requests: Sequence[tuple[int, list[int]]]) -> list[Cut | BrokenVideoError]:
        """The clips of each recording that begin at these places of its grid, or why there are none."""
        if self.kept:
            return [self._from_memory(index, places) for index, places in requests]
        if self.format.backend == "dali":
            return self._together(requests)
        return [self._from_file(index, places) for index, places in requests]

    def whole(self, index: int) -> Cut | BrokenVideoError:
        """All frames and sound that clips of a recording can show, to be ``kept``."""
        last = self.format.starts(self.media[index]) - 1
        times = [self.moment(index, place) for place in range(last + self.format.frames)]
        try:
            frames = read_frames(
                self.paths[index], times, short_side=self.format.short_side, backend=self.format.backend
            )
            return frames, self.sound(index, 0, last)
        except BrokenVideoError as error:
            return error

    def _from_memory(self, index: int, places: list[int]) -> Cut:
        frames, wave = self.kept[index]
        return (
            torch.stack([frames[place : place + self.format.frames] for place in places]),
            self._pieces(wave, index, places, 0),
        )

    def _from_file(self, index: int, places: list[int]) -> Cut | BrokenVideoError:
        shape = self.format
        try:
            frames = read_frames(
                self.paths[index],
                self._times(index, places),
                short_side=shape.short_side,
                backend=shape.backend,
            )
            wave = self.sound(index, min(places), max(places))
        except BrokenVideoError as error:
            return error
        return frames.unflatten(0, (len(places), -1)), self._pieces(wave, index, places, min(places))

    def _together(self, requests: Sequence[tuple[int, list[int]]]) -> list[Cut | BrokenVideoError]:
        """DALI's pictures, decoded as one batch, with the sound that PyAV reads beside it."""
        dali = importlib.import_module("cmx_fast.data.media.decode_dali")
        wanted = [(self.paths[index], self._times(index, places)) for index, places in requests]
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            waves = [pool.submit(self.sound, index, min(places), max(places)) for index, places in requests]
            cuts: list[Any] = dali.batch(wanted, self.format.short_side, max(1, self.threads))
        for row, ((index, places), wave) in enumerate(zip(requests, waves, strict=True)):
            if not isinstance(cuts[row], BrokenVideoError):
                try:
                    sound = self._pieces(wave.result(), index, places, min(places))
                    cuts[row] = (cuts[row].unflatten(0, (len(places), -1)), sound)
                except BrokenVideoError as error:
                    cuts[row] = error
        return cuts

    def _times(self, index: int, places: list[int]) -> list[float]:
        """The seconds at which the frames of these clips are shown."""
        return [self.moment(index, place + k) for place in places for k in range(self.format.frames)]

    def _first(self, index: int, place: int) -> int:
        return round(self.start(index, place) * self.format.sample_rate)

    def sound(self, index: int, low: int, high: int) -> Tensor:
        """The sound of the clips from place ``low`` to ``high``, int16."""
        if not self.format.samples:
            return torch.zeros(0, dtype=torch.int16)
        rate, first = self.format.sample_rate, self._first(index, low)
        count = self._first(index, high) - first + self.format.samples
        backend = "auto" if self.format.backend == "dali" else self.format.backend
        wave = read_wave(self.paths[index], first / rate, count / rate, rate, backend=backend)
        return (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)

    def _pieces(self, wave: Tensor, index: int, places: list[int], low: int) -> Tensor:
        """The sound of each clip out of that from place ``low`` on."""
        offsets = [self._first(index, place) - self._first(index, low) for place in places]
        return torch.stack([wave[offset : offset + self.format.samples] for offset in offsets])


class RandomClips(Dataset[Any]):
    """Batches of one random clip per index; another recording replaces one that breaks."""

    def __init__(self, source: Source, seed: int, epoch: int):
        self.source, self.seed, self.epoch = source, seed, epoch

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        source = self.source
        before = set(source.broken)
        rows: dict[int, tuple[int, float, Cut]] = {}
        candidates = [self._candidates(index, indices) for index in indices]
        while len(rows) < len(indices):
            requests = {}
            for row, candidate in enumerate(candidates):
                if row not in rows:
                    index = next(candidate)
                    starts = source.format.starts(source.media[index])
                    drawn = torch.rand(
                        (), generator=random_stream(self.seed, self.epoch, index, WHERE), dtype=torch.float64
                    )
                    requests[row] = (index, [int(drawn * starts)])
            for (row, (index, places)), cut in zip(
                requests.items(), source.cut(list(requests.values())), strict=True
            ):
                if isinstance(cut, BrokenVideoError):
                    source.broken[index] = cut.reason
                else:
                    rows[row] = (index, source.start(index, places[0]), cut)
        return _stacked([rows[row] for row in range(len(indices))], _new(source.broken, before))

    def _candidates(self, index: int, batch: list[int]) -> Iterator[int]:
        """The index, then all indices outside the batch, in an order that follows from seed, epoch and index alone."""
        broken = self.source.broken
        if index not in broken:
            yield index
        others = torch.randperm(
            len(self.source.paths), generator=random_stream(self.seed, self.epoch, index, INSTEAD)
        ).tolist()
        taken = set(batch)
        for other in others:
            if other not in taken and other not in broken:
                yield other
        raise ValueError(
            f"no recording can take the place of {self.source.paths[index]}, which breaks "
            f"({broken.get(index)}): all others break too, or are in the batch already; use smaller batches"
        )


class UniformClips(Dataset[Any]):
    """Batches of evenly spaced clips of each index, without the recordings that break."""

    def __init__(self, source: Source, clips: int):
        self.source, self.clips = source, clips

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        source = self.source
        before = set(source.broken)
        requests = []
        for index in indices:
            if index not in source.broken:
                last = source.format.starts(source.media[index]) - 1
                requests.append((index, torch.linspace(0, last, self.clips).round().int().tolist()))
        rows = []
        for (index, places), cut in zip(requests, source.cut(requests), strict=True):
            if isinstance(cut, BrokenVideoError):
                source.broken[index] = cut.reason
            else:
                rows.append((index, [source.start(index, place) for place in places], cut))
        return _stacked(rows, _new(source.broken, before))


class WholeRecordings(Dataset[Any]):
    """Each recording as a whole, or the reason why it can't be read."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source.paths)

    def __getitem__(self, index: int) -> tuple[int, Cut | str]:
        whole = self.source.whole(index)
        return index, whole.reason if isinstance(whole, BrokenVideoError) else whole


def _new(broken: dict[int, str], before: set[int]) -> dict[int, str]:
    return {index: reason for index, reason in broken.items() if index not in before}


def _stacked(rows: Sequence[tuple[int, Any, Cut]], broken: dict[int, str]) -> dict[str, Any]:
    """Clips of several recordings as one batch; smaller frames fill the upper left corner."""
    if not rows:
        return {"broken": broken}
    sizes = torch.tensor([cut[0].shape[-2:] for *_, cut in rows])
    height, width = sizes.amax(0).tolist()
    frames = [
        cut[0]
        if cut[0].shape[-2:] == (height, width)  # F.pad would copy it
        else F.pad(cut[0], (0, width - cut[0].shape[-1], 0, height - cut[0].shape[-2]))
        for *_, cut in rows
    ]
    return {
        "frames": default_collate(frames),  # in a worker stacks in shared memory: handed over without a copy
        "wave": default_collate([cut[1] for *_, cut in rows]),
        "index": torch.tensor([index for index, *_ in rows]),
        "start": torch.tensor([start for _, start, _ in rows], dtype=torch.float64),
        "size": sizes,
        "broken": broken,
    }
