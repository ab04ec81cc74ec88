"""The pictures and sounds of scenes as batches, from files or from memory."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.media.decode import check_backend, read_frames, read_wave
from cmx_fast.data.media.files import (
    BrokenFileError,
    centred,
    check_enough_left,
    read_audio,
    read_picture,
    stretched,
)
from cmx_fast.data.sets.scenes import Scene, Scenes
from cmx_fast.data.sets.selection import FPS, Selection, key
from cmx_fast.nn.power_spectrogram import lasting

Value = Tensor | BrokenFileError
#: Numbers of pictures or scenes, each with its tensor.
Rows = list[tuple[int, Tensor]]
#: Reads several at once: from numbers of pictures or scenes to their tensors or errors.
Read = Callable[[list[int]], list[Value]]


class SceneData:
    """Pictures and sounds of one split's scenes, by number.

    A scene has ``moments`` pictures: picture p is of scene p // moments. Of a video they are evenly spaced frames (one:
    the middle), or the best ones of the selection where that names the video; of a picture file it is the file. A
    sound is ``heard`` seconds of the recording, mono, repeated to ``seconds``: its first, or with ``around`` those
    around each moment. A scene has then as many sounds as pictures, ``sounds_each`` of them, and sound s is of scene
    s // sounds_each. A scene that breaks while it is read is left out of its batch, named in ``skipped`` and not read
    again.

    Args:
        size: pixels of the square pictures, the largest centred ones.
        stretch: take whole pictures and change their aspect ratio instead.
        heard: seconds of the sound that are used (the paper's ablation: 1 and 5 s); None: as many as ``seconds``.
        around: hear the seconds around the moment, moved into the recording where they reach over its ends. The
            moment of a picture file is the middle of its sound's first ``seconds``.
        selection: see :mod:`cmx_fast.data.sets.selection`; ``selected`` counts the scenes that it names.
        backend: see :func:`cmx_fast.data.media.decode.read_frames`. "dali" decodes a batch's files together, in this
            process, pictures on the GPU if there is one; the sound of videos is PyAV's.
        cache: keep pictures and sounds in memory once read: 3 size² bytes per picture, 32 kB per second of sound.
        workers: processes that read, by default as many as there are cores but at most 8; 0: this process.

    Attributes:
        entries: the scenes; labels: (len,) int64; class_names.
        skipped: (file, reason) of scenes that can't be used, the adapter's among them.

    Raises:
        ValueError: a number out of range, an unknown backend, or several moments or a selection of a scene whose
            picture is a file.
        MissingExtraError: the backend is not installed.
    """

    def __init__(
        self,
        scenes: Scenes,
        *,
        size: int = 256,
        stretch: bool = False,
        moments: int = 1,
        seconds: float = 10.0,
        heard: float | None = None,
        around: bool = False,
        sample_rate: int = 16000,
        selection: Selection | None = None,
        backend: str = "auto",
        cache: bool = False,
        workers: int | None = None,
    ):
        for name, value in (("size", size), ("moments", moments), ("sample_rate", sample_rate)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seconds <= 0 or (heard is not None and not 0 < heard <= seconds):
            raise ValueError(f"seconds = {seconds} must be positive and heard = {heard} in (0, seconds]")
        files = [scene for scene in scenes.entries if scene.media is None]
        if moments > 1 and files:
            raise ValueError(f"moments must be 1: {files[0].picture} is a single picture; got {moments}")
        if selection is not None and files:
            raise ValueError(
                f"selection must be None: {files[0].picture} is a single picture, which has no moments to select"
            )
        self.entries, self.class_names = scenes.entries, scenes.class_names
        self.skipped = list(scenes.skipped)
        self.labels = torch.tensor([scene.label for scene in self.entries], dtype=torch.int64)
        self.size, self.stretch, self.moments = size, stretch, moments
        self.around, self.sounds_each = around, moments if around else 1
        self.seconds, self.heard, self.sample_rate = seconds, heard or seconds, sample_rate
        self.selection = selection or {}
        self.selected = sum(key(entry.name) in self.selection for entry in self.entries)
        check_backend(backend)
        self.backend = backend
        self.workers = CORES if workers is None else workers
        self._broken: set[int] = set()
        self.cache = cache
        self._kept: dict[str, dict[int, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def times(self, scene: int) -> list[float]:
        """The seconds on the video's clock at which its pictures are taken."""
        entry = self.entries[scene]
        assert entry.media is not None
        chosen = self.selection.get(key(entry.name))
        length = entry.media.video_seconds
        if chosen is None:
            offsets = [(k + 0.5) / self.moments * length for k in range(self.moments)]
        else:
            offsets = [min(chosen[k % len(chosen)] / FPS, length) for k in range(self.moments)]
        return [entry.media.start + offset for offset in offsets]

    def pictures(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches of picture numbers (B,) int64: yields the readable ones and pictures uint8 (B, 3, S, S)."""
        if not self.cache:
            return _stacked(self._read(batches, self._pictures_of, self.moments))
        kept = self._everything("picture", self._pictures_of_scenes, 1)
        return _stacked(
            self._remembered(batches, lambda p: kept[p // self.moments][p % self.moments], self.moments)
        )

    def sounds(
        self, batches: Iterable[Tensor], instead: Callable[[Tensor], Iterable[int]] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches of sound numbers (B,) int64: yields the readable ones and sounds float32 (B, samples).

        ``instead`` gives the sounds that take the places of a batch's broken ones, as many as are needed.
        """
        asked: deque[Tensor] = deque()

        def noted() -> Iterator[Tensor]:
            for batch in batches:
                asked.append(batch)
                yield batch

        if self.cache:
            kept = self._everything("sound", self._sounds_of, self.sounds_each)
            rows_of_batches = self._remembered(noted(), kept.__getitem__, self.sounds_each)
        else:
            rows_of_batches = self._read(noted(), self._sounds_of, self.sounds_each)
        if instead is not None:
            rows_of_batches = (self._filled(rows, asked.popleft(), instead) for rows in rows_of_batches)
        return ((index, wave.float() / 32767) for index, wave in _stacked(rows_of_batches))

    def usable(self) -> Tensor:
        """The numbers of the scenes that have not broken, int64."""
        return torch.tensor([i for i in range(len(self)) if i not in self._broken], dtype=torch.int64)

    def leave_out(self, scene: int, error: BrokenFileError) -> None:
        """Stop using this scene.

        Raises:
            ValueError: more than half of the scenes are broken.
        """
        if scene not in self._broken:
            self._broken.add(scene)
            self.skipped.append((error.path, error.reason))
            check_enough_left(self.skipped, len(self._broken), len(self))

    def read_picture(self, picture: int) -> Tensor:
        """uint8 (3, size, size) of one picture.

        Raises:
            BrokenFileError: the file can't be decoded.
        """
        scene, moment = divmod(picture, self.moments)
        return self.read_pictures(scene, slice(moment, moment + 1))[0]

    def read_pictures(self, scene: int, moments: slice = slice(None)) -> Tensor:
        """uint8 (moments, 3, size, size) of one scene."""
        entry = self.entries[scene]
        if entry.media is None:
            if self.stretch:
                return stretched(entry.picture, lambda *_: (self.size, self.size), draft=True)[None]
            return read_picture(entry.picture, self.size, shorter=self.size)[None]
        times = self.times(scene)[moments]
        frames = read_frames(entry.picture, times, short_side=self.size, backend=self.backend)
        return self._square(frames)

    def read_sound(self, sound: int) -> Tensor:
        """int16 (samples,) of one sound.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        scene, moment = divmod(sound, self.sounds_each)
        entry, rate = self.entries[scene], self.sample_rate
        if entry.sound is None:
            raise BrokenFileError(entry.picture, "has no sound")
        if entry.media is None:
            return self._of_file(read_audio(entry.sound, rate, self._samples_of_file, mix=True))
        start, heard = entry.media.start, min(self.heard, entry.media.seconds)
        by = "auto" if self.backend == "dali" else self.backend
        if self.around:
            latest = start + entry.media.seconds - heard
            start = min(max(start, self.times(scene)[moment] - heard / 2), latest)
        wave = read_wave(entry.sound, start, heard, rate, backend=by)
        if not wave.any() and not (self.around and self._sounds_elsewhere(entry, by)):
            raise BrokenFileError(entry.sound, "is silent")
        return self._lasting(wave)

    def _sounds_elsewhere(self, entry: Scene, backend: str) -> bool:
        assert entry.sound is not None
        assert entry.media is not None
        whole = read_wave(
            entry.sound, entry.media.start, entry.media.seconds, self.sample_rate, backend=backend
        )
        return bool(whole.any())

    @property
    def _samples_of_file(self) -> int:
        return round((self.seconds if self.around else self.heard) * self.sample_rate)

    def _of_file(self, wave: Tensor) -> Tensor:
        """The sound of an audio file that is read from its beginning."""
        if self.around:
            samples = min(len(wave), round(self.heard * self.sample_rate))
            first = (len(wave) - samples) // 2
            wave = wave[first : first + samples]
        return self._lasting(wave)

    def _square(self, frames: Tensor) -> Tensor:
        """Frames uint8 (T, 3, h, w), whose shorter side is ``size``, as squares."""
        if not self.stretch or frames.shape[2] == frames.shape[3]:
            return centred(frames, self.size).contiguous()
        sides = (self.size, self.size)
        return F.interpolate(frames.float(), sides, mode="bilinear", antialias=True).round().byte()

    def _lasting(self, wave: Tensor) -> Tensor:
        return (lasting(wave, self.seconds, self.sample_rate) * 32767).round().short()

    def _pictures_of(self, pictures: list[int]) -> list[Value]:
        moments_of_scenes = [
            (p // self.moments, slice(p % self.moments, p % self.moments + 1)) for p in pictures
        ]
        decoded = self._decoded(moments_of_scenes)
        return [value if isinstance(value, BrokenFileError) else value[0] for value in decoded]

    def _pictures_of_scenes(self, scenes: list[int]) -> list[Value]:
        return self._decoded([(scene, slice(None)) for scene in scenes])

    def _decoded(self, moments_of_scenes: list[tuple[int, slice]]) -> list[Value]:
        """The pictures (moments, 3, size, size) of each scene at its moments."""
        if self.backend != "dali":
            return [_otherwise(self.read_pictures, scene, moments) for scene, moments in moments_of_scenes]
        decoded: dict[int, Value] = {}
        videos = {row: w for row, w in enumerate(moments_of_scenes) if self.entries[w[0]].media is not None}
        requests = [(self.entries[s].picture, self.times(s)[moments]) for s, moments in videos.values()]
        frames = _dali("decode_dali").batch(requests, self.size, self.workers or 1)
        for row, value in zip(videos, frames, strict=True):
            broken = isinstance(value, BrokenFileError)
            decoded[row] = value if broken else self._square(value)
        files = {
            row: self.entries[s].picture for row, (s, _) in enumerate(moments_of_scenes) if row not in videos
        }
        pictures = _dali("decode_dali_files").read_pictures(
            list(files.values()),
            self.size,
            shorter=self.size,
            stretch=self.stretch,
            threads=self.workers or 1,
        )
        for row, value in zip(files, pictures, strict=True):
            decoded[row] = value if isinstance(value, BrokenFileError) else value[None]
        return [decoded[row] for row in range(len(moments_of_scenes))]

    def _sounds_of(self, sounds: list[int]) -> list[Value]:
        if self.backend != "dali":
            return [_otherwise(self.read_sound, sound) for sound in sounds]
        paths = {
            sound: entry.sound
            for sound in sounds
            if (entry := self.entries[sound // self.sounds_each]).media is None and entry.sound is not None
        }
        waves = _dali("decode_dali_files").read_sounds(
            list(paths.values()), self.sample_rate, self._samples_of_file, mix=True, threads=self.workers or 1
        )
        files = {
            sound: self._of_file(wave) if isinstance(wave, Tensor) else wave
            for sound, wave in zip(paths, waves, strict=True)
        }
        with ThreadPoolExecutor(self.workers or 1) as pool:
            videos = {s: pool.submit(_otherwise, self.read_sound, s) for s in sounds if s not in files}
            decoded = files | {sound: wave.result() for sound, wave in videos.items()}
        return [decoded[sound] for sound in sounds]

    def _filled(self, rows: Rows, batch: Tensor, instead: Callable[[Tensor], Iterable[int]]) -> Rows:
        """A batch's sounds; others take the places of those that broke, as far as there are any."""
        others = iter(instead(batch) if len(rows) < len(batch) else ())
        while len(rows) < len(batch) and (sound := next(others, None)) is not None:
            if sound // self.sounds_each not in self._broken:
                value = self._kept["sound"][sound] if self.cache else self._sounds_of([sound])[0]
                rows = [*rows, *self._readable([(sound, value)], self.sounds_each)]
        return rows

    def _everything(self, kind: str, read: Read, per_scene: int) -> dict[int, Tensor]:
        """The tensor of every number, of which a scene has ``per_scene``, by ``read``, which reads each once."""
        if kind not in self._kept:
            self._kept[kind] = {
                number: value.cpu()
                for rows in self._read(torch.arange(len(self) * per_scene).split(16), read, per_scene)
                for number, value in rows
            }
        return self._kept[kind]

    def _remembered(
        self, batches: Iterable[Tensor], look_up: Callable[[int], Tensor], per_scene: int
    ) -> Iterator[Rows]:
        return ([(i, look_up(i)) for i in self._unbroken(batch, per_scene)] for batch in batches)

    def _read(self, batches: Iterable[Tensor], read: Read, per_scene: int) -> Iterator[Rows]:
        """The readable part of each batch, which may be empty."""
        loader: Iterable[list[tuple[int, Value]]] = load_batches(
            _Items(read),
            (self._unbroken(batch, per_scene) for batch in batches),
            workers=0 if self.backend == "dali" else self.workers,
            collate=_as_it_is,
        )
        return (self._readable(items, per_scene) for items in loader)

    def _readable(self, items: list[tuple[int, Value]], per_scene: int) -> Rows:
        """The readable items; the others are not used again."""
        good = []
        for index, value in items:
            if isinstance(value, BrokenFileError):
                self.leave_out(index // per_scene, value)
            else:
                good.append((index, value))
        return good

    def _unbroken(self, batch: Tensor, per_scene: int) -> list[int]:
        return [i for i in batch.tolist() if i // per_scene not in self._broken]


class _Items(Dataset[Any]):
    """The tensors of numbers, by ``read``, or the errors of those that can't be read."""

    def __init__(self, read: Read):
        self.read = read

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Value]]:
        return list(zip(indices, self.read(indices), strict=True))


def _stacked(batches: Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers and the values of each batch that is not empty."""
    for rows in batches:
        if rows:
            yield torch.tensor([index for index, _ in rows]), torch.stack([value for _, value in rows])


def _otherwise(read: Callable[..., Tensor], *arguments: Any) -> Value:
    try:
        return read(*arguments)
    except BrokenFileError as error:
        return error


def _dali(module: str) -> Any:
    return importlib.import_module(f"cmx_fast.data.media.{module}")


def _as_it_is(batch: Any) -> Any:
    return batch
