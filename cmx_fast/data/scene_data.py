"""The pictures and sounds of scenes as batches, from files or from memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..nn.power_spectrogram import lasting
from .decode import read_frames, read_wave
from .media_files import BrokenFileError, check_enough_left, read_audio, read_picture
from .scenes import Scenes
from .selection import FPS, Selection, key
from .worker_loader import load_batches


class SceneData:
    """Pictures and sounds of one split's scenes, by number.

    A scene has ``moments`` pictures: picture p is of scene p // moments. Of a video they are evenly spaced frames (one:
    the middle), or the best ones of the selection where that names the video; of a picture file it is the file. The
    sound is the recording's first ``heard`` seconds, mono, repeated to ``seconds``. What breaks while it is read is
    left out of its batch, named in ``skipped`` and not read again.

    Args:
        size: pixels of the square pictures, the largest centred ones.
        heard: of the sound (the paper's ablation: 1 and 5 s); None: as much as ``seconds``.
        selection: see :mod:`cmx_fast.data.selection`.
        cache: keep in memory what has been read: 3 size² bytes per picture, 32 kB per second of sound.
        workers: processes that read, by default as many as there are cores but at most 8; 0: this process.

    Attributes:
        entries: the scenes; labels: (len,) int64; class_names.
        skipped: (file, reason) of what can't be used, the adapter's among them.

    Raises:
        ValueError: a number out of range, or several moments of a scene whose picture is a file.
    """

    def __init__(
        self,
        scenes: Scenes,
        *,
        size: int = 256,
        moments: int = 1,
        seconds: float = 10.0,
        heard: float | None = None,
        sample_rate: int = 16000,
        selection: Selection | None = None,
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
        self.entries, self.class_names = scenes.entries, scenes.class_names
        self.skipped = list(scenes.skipped)
        self.labels = torch.tensor([scene.label for scene in self.entries], dtype=torch.int64)
        self.size, self.moments = size, moments
        self.seconds, self.heard, self.sample_rate = seconds, heard or seconds, sample_rate
        self.selection = selection or {}
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
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
        """For each of ``batches``, picture numbers (B,) int64: those that can be read, and uint8 (B, 3, S, S)."""
        if not self.cache:
            return self._read(batches, self.read_picture, self.moments)
        kept = self._everything("picture", self.read_pictures)
        return self._remembered(batches, lambda p: kept[p // self.moments][p % self.moments], self.moments)

    def sounds(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of ``batches``, scene numbers (B,) int64: those that can be read, and float32 (B, samples)."""
        if self.cache:
            waves = self._remembered(batches, self._everything("sound", self.read_sound).__getitem__, 1)
        else:
            waves = self._read(batches, self.read_sound, 1)
        return ((index, wave.float() / 32767) for index, wave in waves)

    def usable(self) -> Tensor:
        """The scenes that nothing is known to be wrong with, int64."""
        return torch.tensor([i for i in range(len(self)) if i not in self._broken], dtype=torch.int64)

    def leave_out(self, scene: int, error: BrokenFileError) -> None:
        """Use this scene no more.

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
            return read_picture(entry.picture, self.size, shorter=self.size)[None]
        frames = read_frames(entry.picture, self.times(scene)[moments], short_side=self.size)
        top, left = ((side - self.size) // 2 for side in frames.shape[2:])
        return frames[:, :, top : top + self.size, left : left + self.size].contiguous()

    def read_sound(self, scene: int) -> Tensor:
        """int16 (samples,) of one scene.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        entry, rate = self.entries[scene], self.sample_rate
        if entry.sound is None:
            raise BrokenFileError(entry.picture, "has no sound")
        if entry.media is None:
            wave = read_audio(entry.sound, rate, round(self.heard * rate), mix=True)
        else:
            heard = min(self.heard, entry.media.seconds)
            wave = read_wave(entry.sound, entry.media.start, heard, rate)
            if not wave.any():
                raise BrokenFileError(entry.sound, "is silent")
        return (lasting(wave, self.seconds, rate) * 32767).round().short()

    def _everything(self, what: str, read: Callable[[int], Tensor]) -> dict[int, Tensor]:
        """What ``read`` gives of every scene, read once."""
        if what not in self._kept:
            self._kept[what] = {
                int(scene): value
                for scenes, values in self._read(torch.arange(len(self)).split(16), read, 1)
                for scene, value in zip(scenes, values, strict=True)
            }
        return self._kept[what]

    def _remembered(
        self, batches: Iterable[Tensor], look_up: Callable[[int], Tensor], per_scene: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            if wanted := self._unbroken(batch, per_scene):
                yield torch.tensor(wanted), torch.stack([look_up(i) for i in wanted])

    def _read(
        self, batches: Iterable[Tensor], read: Callable[[int], Tensor], per_scene: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: Iterable[list[tuple[int, Tensor | BrokenFileError]]] = load_batches(
            _Items(read),
            (wanted for batch in batches if (wanted := self._unbroken(batch, per_scene))),
            workers=self.workers,
            collate=_as_it_is,
        )
        for items in loader:
            good = []
            for index, value in items:
                if isinstance(value, BrokenFileError):
                    self.leave_out(index // per_scene, value)
                else:
                    good.append((index, value))
            if good:
                yield torch.tensor([index for index, _ in good]), torch.stack([value for _, value in good])

    def _unbroken(self, batch: Tensor, per_scene: int) -> list[int]:
        return [i for i in batch.tolist() if i // per_scene not in self._broken]


class _Items(Dataset[Any]):
    """What ``read`` gives of a number, or why it can't be read."""

    def __init__(self, read: Callable[[int], Tensor]):
        self.read = read

    def __getitem__(self, index: int) -> tuple[int, Tensor | BrokenFileError]:
        try:
            return index, self.read(index)
        except BrokenFileError as error:
            return index, error


def _as_it_is(batch: Any) -> Any:
    return batch
