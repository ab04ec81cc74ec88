"""Random and evenly spaced clips of video recordings, picture and sound from the same moment on."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmx_fast.data.loaders.clip_reader import ClipFormat, RandomClips, Source, UniformClips, WholeRecordings
from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.loaders.workers import CORES, load_batches
from cmx_fast.data.media.decode import BrokenVideoError, Media, check_backend, probe
from cmx_fast.data.media.files import check_enough_left
from cmx_fast.data.media.moments import resized
from cmx_fast.data.sets.recordings import Recording, Recordings

#: A recording has to be this many seconds longer than a clip: for 32 frames at 30 fps that is GDT's 1.1 s.
MARGIN = 1 / 30


class Clips:
    """Clips of ``frames`` pictures at ``fps`` and ``seconds`` of sound, both from one moment on.

    Opening looks at every file without decoding it (:func:`cmx_fast.data.media.decode.probe`, in parallel, once per
    process) and leaves out those that are broken, have no sound, or are not longer than a clip by a 30th of a second. A
    recording that breaks later, while it is decoded, is left out from then on. Clips begin on a grid of ``1 / fps``
    from the recording's start. The frames are CMAC's 32; rates and 16-bit sound are those of GDT's code.

    Args:
        recordings: of videos; their own ``skipped`` begins the list of this one.
        seconds: of sound; ``audio=False`` gives pictures alone and takes recordings without sound too.
        short_side: pixels of the shorter side after resizing.
        loop: take recordings that are shorter than a clip, too, and show them again from their start until the clip is
            full: for pictures alone.
        backend: see :func:`cmx_fast.data.media.decode.read_frames`. "dali" decodes the pictures of a batch together in
            this process (loader workers can't use the GPU) and leaves the sound to PyAV.
        cache: decode everything once, now, and cut clips from memory: ``3 h w`` bytes per frame at ``fps``.
        workers: processes that decode, by default as many as there are cores but at most 8; 0: this process. Neither
            ``workers`` nor ``cache`` changes the batches.
        device: the batches' device.

    Attributes:
        entries: the recordings that can be used; all indices count these.
        labels: (len,) int64.
        media: the lengths, rate and size of each.
        skipped: path and reason of all that can't be used; grows while clips are decoded.
        keeps_maps: True once :meth:`keep_maps` has put an encoder's maps in the place of frames.

    Raises:
        ValueError: a number outside its range, an unknown backend, or no usable recording.
        MissingExtraError: the backend is not installed.
    """

    def __init__(
        self,
        recordings: Recordings,
        *,
        frames: int = 32,
        fps: float = 30,
        seconds: float = 1.0,
        sample_rate: int = 24000,
        short_side: int = 160,
        audio: bool = True,
        loop: bool = False,
        backend: str = "auto",
        cache: bool = False,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ):
        for name, value in (
            ("frames", frames),
            ("fps", fps),
            ("seconds", seconds),
            ("sample_rate", sample_rate),
            ("short_side", short_side),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if loop and audio:
            raise ValueError("loop is for pictures alone, with audio=False: a sound is not played twice")
        check_backend(backend)
        self.device = torch.device(device)
        self.workers = CORES if workers is None else workers
        samples = round(seconds * sample_rate) if audio else 0
        format = ClipFormat(frames, fps, samples, sample_rate, short_side, backend, loop)
        self.entries: list[Recording] = []
        self.media: list[Media] = []
        self.skipped: list[tuple[Path, str]] = list(recordings.skipped)
        paths = [entry.path for entry in recordings.entries]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            outcomes = pool.map(lambda path: _media_or_problem(path, format), paths)
            for entry, path, outcome in zip(recordings.entries, paths, outcomes, strict=True):
                if isinstance(outcome, Media):
                    self.entries.append(entry)
                    self.media.append(outcome)
                else:
                    self.skipped.append((path, outcome))
        if not self.entries:
            raise ValueError(f"none of {len(paths)} recordings can be used: {self._reasons()}")
        self._never_used = len(self.skipped)
        self.labels = torch.tensor([entry.label for entry in self.entries], dtype=torch.int64)
        self.keeps_maps = False
        self._source = Source([entry.path for entry in self.entries], self.media, format, self.workers)
        if cache:
            self._keep()

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, batches: Iterable[Tensor], *, seed: int, epoch: int) -> Iterator[dict[str, Tensor]]:
        """A random clip of each recording in ``batches`` of indices (B,), the same for the same seed, epoch and index.

        Yields "frames" uint8 (B, T, 3, h, w) and "wave" float32 (B, samples) in [-1, 1], without ``audio`` none, on the
        device. On the host, since a clip's random numbers follow from them: "index" int64 (B,); "start" float64 (B,),
        seconds on the recording's clock; "size" int64 (B, 2), the height and width of each clip: smaller ones fill the
        upper left corner of their frames. A recording that breaks is replaced by one that is not in the batch.

        Raises:
            ValueError: no recording is left to replace one that breaks.
        """
        for batch in self._batches(RandomClips(self._source, seed, epoch), batches):
            yield {
                name: value[:, 0] if name in ("frames", "wave") else value for name, value in batch.items()
            }

    def uniform(self, batches: Iterable[Tensor], clips: int = 10) -> Iterator[dict[str, Tensor]]:
        """``clips`` evenly spaced clips of each recording, from its first moment to its last, for evaluation.

        As :meth:`load`, with "frames" (B, clips, T, 3, h, w), "wave" (B, clips, samples) and "start" (B, clips). A
        recording that breaks is missing from its batch, so go by "index".
        """
        if clips < 1:
            raise ValueError(f"clips must be at least 1, got {clips}")
        return self._batches(UniformClips(self._source, clips), batches)

    def _batches(self, cut: Dataset[Any], batches: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        loader = load_batches(
            cut,
            (batch.tolist() for batch in batches),
            workers=self._processes(),
            collate=_as_it_is,  # batches come from __getitems__
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            self._leave_out(batch.pop("broken"))
            if batch:
                batch |= {name: upload(batch[name], self.device) for name in ("frames", "wave")}
                wave = batch.pop("wave").float() / 32768
                yield batch if wave.shape[-1] == 0 else batch | {"wave": wave}

    @property
    def counts(self) -> dict[str, int]:
        """The recordings that were "listed", those "used" so far, and how many of these are "looped"."""
        shape, broken = self._source.format, self._source.broken
        used = [media for index, media in enumerate(self.media) if index not in broken]
        looped = sum(shape.loop and media.seconds < shape.seconds for media in used)
        return {"listed": len(self.entries) + self._never_used, "used": len(used), "looped": looped}

    def frame_counts(self) -> list[int]:
        """The frames of each recording that clips can show, those at its places of the grid and up to a clip's end."""
        shape = self._source.format
        return [shape.starts(media) - 1 + shape.frames for media in self.media]

    def frame_sizes(self, index: Tensor) -> Tensor:
        """Height and width (B, 2), int64, of the decoded frames of recordings (B,)."""
        side = self._source.format.short_side
        sizes = [
            resized(self.entries[i].path, self.media[i].width, self.media[i].height, side)[::-1]
            for i in index.tolist()
        ]
        return torch.tensor(sizes)

    def whole(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each recording's number, frames uint8 (F, 3, h, w) and sound int16 (samples,), decoded once, on the host."""
        loader: Iterable[Any] = DataLoader(
            WholeRecordings(self._source),
            batch_size=None,
            num_workers=self._processes(),
            generator=torch.Generator(),
        )
        for index, content in loader:
            if isinstance(content, str):
                self._leave_out({index: content})
            else:
                yield index, *content

    def keep_maps(self, maps: Mapping[int, Tensor]) -> None:
        """Cut clips from the maps (F, C, h, w) of each recording's frames from now on, and from its sound, read now.

        Batches then have maps (B, T, C, h, w) as "frames". Recordings without maps are left out.
        """
        last = [count - self._source.format.frames for count in self.frame_counts()]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            sounds = {index: pool.submit(self._source.sound, index, 0, last[index]) for index in maps}
        kept = {}
        for index, sound in sounds.items():
            try:
                kept[index] = maps[index], sound.result()
            except BrokenVideoError as error:
                self._leave_out({index: error.reason})
        self._leave_out(
            {
                i: "could not be decoded when its maps were made"
                for i in range(len(self))
                if i not in maps and i not in self._source.broken
            }
        )
        self._source.kept, self.keeps_maps = kept, True

    def from_files(self) -> Clips:
        """The same recordings with frames and sound read from the files, whatever is kept."""
        clips = copy.copy(self)
        clips._source, clips.keeps_maps = dataclasses.replace(self._source, kept={}), False
        return clips

    def _keep(self) -> None:
        """Decode every recording once."""
        kept = {
            index: (frames.clone(), wave.clone()) for index, frames, wave in self.whole()
        }  # frees file handles
        if not kept:
            raise ValueError(f"none of {len(self)} recordings can be decoded: {self._reasons()}")
        self._source.kept = kept

    def _processes(self) -> int:
        return 0 if self._source.kept or self._source.format.backend == "dali" else self.workers

    def _leave_out(self, broken: dict[int, str]) -> None:
        """List the recordings that broke in a worker; in this process the source knows them already."""
        named = {path for path, _ in self.skipped}
        for index, reason in broken.items():
            self._source.broken[index] = reason
            if self._source.paths[index] not in named:
                self.skipped.append((self._source.paths[index], reason))
        if broken:
            check_enough_left(self.skipped, len(self._source.broken), len(self))

    def _reasons(self) -> str:
        named = [f"{path.name}: {reason}" for path, reason in self.skipped[:3]]
        return "; ".join(named) + ("; ..." if len(self.skipped) > 3 else "")


def _media_or_problem(path: Path, format: ClipFormat) -> Media | str:
    """The media that a file plays, or the reason why no clip can be cut from it."""
    try:
        about = path.stat()
        media = _probed(path, about.st_mtime_ns, about.st_size, format.samples > 0)
    except BrokenVideoError as error:
        return error.reason
    except OSError:
        return "missing"
    if format.loop and media.seconds > 0:
        return media
    if media.seconds < format.seconds + MARGIN:
        return f"too short: plays {media.seconds:.2f} s, clips need {format.seconds + MARGIN:.2f} s"
    return media


@functools.cache
def _probed(path: Path, changed: int, size: int, audio: bool) -> Media:
    """``probe`` once per process and state of the file."""
    return probe(path, audio=audio)


def _as_it_is(batch: Any) -> Any:
    return batch
