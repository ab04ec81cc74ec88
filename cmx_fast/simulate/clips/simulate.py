"""A small stand-in for Kinetics or VGGSound, in their layouts, where one object sounds."""

from __future__ import annotations

import csv
import functools
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from cmx_fast._extras import require
from cmx_fast.data.media.moments import address
from cmx_fast.simulate.clips.objects import LARGEST, SHAPES, background, draw, random_object
from cmx_fast.simulate.clips.sounds import sound
from cmx_fast.simulate.processes import each

CLASSES = tuple(sorted(SHAPES))
CONTAINERS = {"aac": ".mp4", "pcm": ".mkv"}
VIDEO_CODECS = {"h264": "libx264", "mpeg4": "mpeg4"}
AUDIO_CODECS = {"aac": "aac", "pcm": "pcm_s16le"}
SPLITS = ("train", "val", "test")
POSITIONS = "positions.csv"
BOXES = "vggss.json"
CHARACTERS = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True)
class ClipSettings:
    """The settings of simulated clips: their pictures, their sounds, and how they are stored."""

    width: int = 128
    height: int = 96
    seconds: float = 3.0
    fps: int = 24
    sample_rate: int = 24000
    distractors: int = 3  # the most silent objects, of which there is at least one; 0: none
    largest: float = LARGEST  # radius of an object as a share of the shorter side; the smallest is half of it
    places: int = (
        0  # backgrounds that the clips of a split share, whatever their class; 0: each clip has its own
    )
    seed: int = 0
    video: str = "h264"
    audio: str = "aac"

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if value < 32 or value % 2:
                raise ValueError(
                    f"{name} must be even and at least 32 (video codecs store 2 x 2), got {value}"
                )
        if self.seconds < 1.2:
            raise ValueError(f"seconds must be at least 1.2, a clip of 1 s and some room, got {self.seconds}")
        if not 1 <= self.fps <= 60:
            raise ValueError(f"fps must be 1 to 60, got {self.fps}")
        for name in ("distractors", "places"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0.05 <= self.largest <= 0.38:
            raise ValueError(
                f"largest must be in [0.05, 0.38] (objects stay within the frame), got {self.largest}"
            )
        for name, choices in (("video", VIDEO_CODECS), ("audio", AUDIO_CODECS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Clip:
    """A clip before it is stored: its class, frames uint8 (T, H, W, 3), sound float32, and the object's positions."""

    label: str
    frames: np.ndarray
    wave: np.ndarray
    track: np.ndarray  # (T, 3): x, y and radius in pixels


def render_clip(index: int, settings: ClipSettings, split: str = "train") -> Clip:
    """The clip of this number; numbers go through the classes in turn.

    Colours, sizes, places and backgrounds are drawn alike for all classes: form and sound tell them. With
    ``settings.places`` a split's backgrounds are its own.
    """
    generator = np.random.default_rng([settings.seed, index])
    label = CLASSES[index % len(CLASSES)]
    width, height = settings.width, settings.height
    an_object = functools.partial(random_object, generator, largest=settings.largest)
    sounding = an_object(label, width, height, sounding=True)
    silent = generator.integers(1, settings.distractors + 1) if settings.distractors else 0
    others = [an_object(str(generator.choice(CLASSES)), width, height, sounding=False) for _ in range(silent)]
    filmed_at = generator
    if settings.places:
        place = int(np.random.default_rng([settings.seed, index, 2]).integers(settings.places))
        filmed_at = np.random.default_rng([settings.seed, SPLITS.index(split), place, 3])
    scene = background(filmed_at, width, height)
    seconds = np.arange(round(settings.seconds * settings.fps)) / settings.fps
    frames = np.empty((len(seconds), height, width, 3), dtype=np.uint8)
    for i, second in enumerate(seconds):
        frame = scene + generator.normal(0, 3, (height, width, 1))
        # The sounding one is in front, so that the truth can be seen.
        for thing in (*others, sounding):
            draw(frame, thing, second)
        frames[i] = np.clip(frame, 0, 255)
    wave = sound(sounding, generator, settings.seconds, settings.sample_rate, width, height, settings.largest)
    x, y = sounding.position(seconds)
    return Clip(label, frames, wave, np.stack([x, y, sounding.size(seconds)], axis=1))


def write_video(path: Path, frames: np.ndarray, wave: np.ndarray, settings: ClipSettings) -> None:
    """Write frames uint8 (T, H, W, 3) and a mono wave float32 to one file, multiplexed by PyAV."""
    av = require("av", "media")
    with av.open(address(path), "w") as container:
        video = container.add_stream(VIDEO_CODECS[settings.video], rate=settings.fps)
        video.width, video.height, video.pix_fmt = settings.width, settings.height, "yuv420p"
        # Short groups of pictures: a random clip then costs little more than its own frames.
        video.gop_size = settings.fps // 2
        if settings.video == "h264":
            video.options = {"crf": "20", "preset": "veryfast"}
        else:
            video.bit_rate = 600_000
        audio = container.add_stream(AUDIO_CODECS[settings.audio], rate=settings.sample_rate, layout="mono")
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, settings.fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        planar = settings.audio == "aac"
        samples = wave if planar else np.round(wave * 32767).astype(np.int16)
        sounds = av.AudioFrame.from_ndarray(samples[None], format="fltp" if planar else "s16", layout="mono")
        sounds.sample_rate, sounds.pts = settings.sample_rate, 0
        container.mux(audio.encode(sounds))
        container.mux(audio.encode())


def _identity(index: int, settings: ClipSettings) -> tuple[str, int]:
    """A made-up YouTube id and the second at which the clip begins in that video."""
    generator = np.random.default_rng([settings.seed, index, 1])
    return "".join(generator.choice(list(CHARACTERS), 11)), int(generator.integers(0, 300))


def _write_clip(entry: Entry, root: Path, settings: ClipSettings) -> list[tuple[Any, ...]]:
    """Render and store a clip below the root; returns its rows of positions.csv."""
    clip = render_clip(entry.index, settings, entry.split)
    file = root / entry.file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, clip.frames, clip.wave, settings)
    return [(file.stem, i, *(f"{value:.2f}" for value in row)) for i, row in enumerate(clip.track)]


@dataclass(frozen=True)
class Entry:
    """A clip of a data set: its number and split, its file below the root, and its row in the layout's list."""

    index: int
    split: str
    file: Path
    row: tuple[Any, ...]


def _layout(layout: str, split: str, indices: Iterable[int], settings: ClipSettings) -> list[Entry]:
    suffix, length = CONTAINERS[settings.audio], int(np.ceil(settings.seconds))
    entries = []
    for index in indices:
        label, (identity, start) = CLASSES[index % len(CLASSES)], _identity(index, settings)
        if layout == "kinetics":
            file = Path(split, label, f"{identity}_{start:06d}_{start + length:06d}{suffix}")
            row: tuple[Any, ...] = (label, identity, start, start + length, split, 0)
        else:
            file = Path("video", f"{identity}_{start:06d}{suffix}")
            row = (identity, start, label, split)
        entries.append(Entry(index, split, file, row))
    return entries


def _write_lists(root: Path, layout: str, splits: dict[str, list[Entry]]) -> None:
    if layout == "vggsound":
        with (root / "vggsound.csv").open("w", newline="") as file:
            csv.writer(file).writerows(entry.row for entries in splits.values() for entry in entries)
        return
    for split, entries in splits.items():
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("label", "youtube_id", "time_start", "time_end", "split", "is_cc"))
            writer.writerows(entry.row for entry in entries)


def _box(track: list[tuple[Any, ...]], settings: ClipSettings) -> list[float]:
    """The box around the object in the middle frame, as shares of the picture's sides, from rows of positions.csv."""
    x, y, radius = (float(value) for value in track[len(track) // 2][2:])
    corners = ((x - radius) / settings.width, (y - radius) / settings.height,
               (x + radius) / settings.width, (y + radius) / settings.height)  # fmt: skip
    return [round(min(max(corner, 0.0), 1.0), 4) for corner in corners]


def write_clips(
    folder: Path, clips: int, layout: str, settings: ClipSettings, *, workers: int
) -> dict[str, int]:
    """Write so many clips, and as many to test on as to choose by, into an empty folder; gives the clips of each split.

    Args:
        layout: "kinetics" or "vggsound".
        workers: processes; they don't change what is written.
    """
    train = clips * 4 // 5
    numbers = {"train": range(train), "val": range(train, clips), "test": range(clips, 2 * clips - train)}
    splits = {split: _layout(layout, split, indices, settings) for split, indices in numbers.items()}
    todo = [entry for entries in splits.values() for entry in entries]
    boxes = []
    with (folder / POSITIONS).open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("name", "frame", "x", "y", "radius"))
        write = functools.partial(_write_clip, root=folder, settings=settings)
        written = each(write, todo, workers)
        for entry, rows in zip(todo, track(written, "clips", total=len(todo)), strict=True):
            writer.writerows(rows)
            if entry.split == "test":
                label = CLASSES[entry.index % len(CLASSES)]
                boxes.append({"file": entry.file.stem, "class": label, "bbox": [_box(rows, settings)]})
    _write_lists(folder, layout, splits)
    if layout == "vggsound":
        (folder / BOXES).write_text(json.dumps(boxes, indent=1) + "\n")
    return {split: len(entries) for split, entries in splits.items()}
