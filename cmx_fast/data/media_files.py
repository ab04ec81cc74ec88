"""Reading audio and picture files, and finding broken ones cheaply before training starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .resampling import RATES, resample


class BrokenFileError(ValueError):
    """A data file that can't be used; the message names the file and what to do."""

    remedy = "repair or remove it, or go on without it: --skip-bad (skip_bad=True)"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; {self.remedy}")
        self.path = path
        self.reason = reason

    def __reduce__(
        self,
    ) -> tuple[type[BrokenFileError], tuple[Path, str]]:  # so that a loader's worker can raise it
        return type(self), (self.path, self.reason)


def check_enough_left(skipped: Sequence[tuple[Path, str]], broken: int, total: int) -> None:
    """Bad files are left out and counted, but not most of a data set: then something else is wrong.

    Raises:
        ValueError: more than half can't be used; some are named.
    """
    if 2 * broken > total:
        named = "; ".join(f"{path.name}: {reason}" for path, reason in skipped[:3])
        raise ValueError(
            f"{broken} of {total} recordings can't be used, more than half ({named}; ...); look at them first"
        )


def audio_problem(path: Path) -> str | None:
    """What is wrong with an audio file as far as its header and size tell, or None. Decodes nothing."""
    soundfile = require("soundfile", "media")
    if not path.is_file():
        return "missing"
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return f"not a readable audio file ({error.error_string})"
    if info.frames == 0:
        return "has no samples"
    with open(path, "rb") as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            declared = int.from_bytes(head[4:8], "little") + 8
            if declared < 0xFFFFFFFF and os.fstat(stream.fileno()).st_size < declared:
                return f"truncated ({os.fstat(stream.fileno()).st_size} of {declared} bytes)"
    return None


def picture_problem(path: Path) -> str | None:
    """What is wrong with a picture file as far as its header and its end tell, or None. Decodes nothing."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        return "missing"
    try:
        with Image.open(path) as image:
            kind = image.format
    except UnidentifiedImageError:
        return "not a picture"
    except (OSError, SyntaxError, ValueError) as error:
        return f"not a readable picture ({error})"
    end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "")
    if end:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 1024))
            if end not in stream.read():
                return "truncated"
    return None


def read_audio(path: Path, sample_rate: int, max_samples: int, *, mix: bool = False) -> Tensor:
    """The first channel as float32 ``(samples,)`` at ``sample_rate``, at most ``max_samples`` of it.

    ``mix``: the mean of the channels instead.

    Another rate is resampled (band-limited, torchaudio). BrokenFileError for what can't be decoded, is silent or
    has NaN or infinity in it.
    """
    soundfile = require("soundfile", "media")
    try:
        with soundfile.SoundFile(path) as stream:
            rate = stream.samplerate
            if rate not in RATES:
                raise BrokenFileError(path, f"says it has {rate} samples per second")
            frames = -(-max_samples * rate // sample_rate)
            samples = stream.read(frames, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise BrokenFileError(path, f"can't be decoded ({error})") from error
    wave = torch.from_numpy(np.ascontiguousarray(samples.mean(1) if mix else samples[:, 0]))
    wave = resample(wave, rate, sample_rate)
    if not torch.isfinite(wave).all():
        raise BrokenFileError(path, "holds NaN or infinity")
    if not wave.any():
        raise BrokenFileError(path, "is silent")
    return wave[:max_samples].clone()


def read_picture(path: Path, size: int, *, shorter: int | None = None) -> Tensor:
    """RGB uint8 ``(3, size, size)``: the shorter side resized to ``shorter``, then the centre cropped.

    ``shorter`` is size * 256 / 224 unless given.
    """
    from PIL import Image

    shorter = round(size * 256 / 224) if shorter is None else shorter
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (shorter, shorter))
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenFileError(path, f"can't be decoded ({error})") from error
    scale = shorter / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
