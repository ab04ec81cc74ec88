"""Reads audio and picture files, and finds broken ones cheaply before training starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmx_fast._extras import require
from cmx_fast.data.media import ffmpeg_sounds
from cmx_fast.data.media.resampling import RATES, resample
from cmx_fast.data.media.sphere import is_shortened, shortened_samples
from cmx_fast.data.media.suffixes import BY_FFMPEG

#: The largest ratio of a picture's sides: beyond it the resized picture would fill the memory.
LONGEST_SIDE = 16
#: RIFF files that say they are longer were written to a pipe, where nobody knew their length: 0x7FFFF024, 0x80000000
#: or 0xFFFFFFFF by program. They are read to their end.
_FROM_A_PIPE = 0x7FFFF000


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
    """Refuse to go on where most of a data set is broken: then something else is wrong.

    Raises:
        ValueError: more than half can't be used; some are named.
    """
    if 2 * broken > total:
        named = "; ".join(f"{path.name}: {reason}" for path, reason in skipped[:3])
        raise ValueError(
            f"{broken} of {total} recordings can't be used, more than half ({named}; ...); look at them first"
        )


def audio_problem(path: Path) -> str | None:
    """The fault of an audio file as far as its header and size tell, or None. Decodes nothing."""
    soundfile = require("soundfile", "media")
    if not path.is_file():
        return "missing"
    if is_shortened(path):
        return None if shortened_samples(path) else "has no samples"
    if path.suffix.lower() in BY_FFMPEG:
        return ffmpeg_sounds.problem(path)
    try:
        info = soundfile.info(os.fsencode(path))  # names may be any bytes
    except soundfile.LibsndfileError as error:
        return f"not a readable audio file ({error.error_string})"
    if info.frames == 0:
        return "has no samples"
    with open(path, "rb") as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            declared = int.from_bytes(head[4:8], "little") + 8
            if declared < _FROM_A_PIPE and os.fstat(stream.fileno()).st_size < declared:
                return f"truncated ({os.fstat(stream.fileno()).st_size} of {declared} bytes)"
    return None


def audio_seconds(path: Path) -> float:
    """The length of a sound file in seconds. Decodes it where its header may only estimate it, as AAC's does.

    Raises:
        BrokenFileError: it can't be decoded.
    """
    soundfile = require("soundfile", "media")
    try:
        if path.suffix.lower() in BY_FFMPEG or is_shortened(path):
            samples, rate = ffmpeg_sounds.decode(path, ffmpeg_sounds.LONGEST)
            return len(samples) / rate
        return float(soundfile.info(os.fsencode(path)).duration)
    except (OSError, soundfile.LibsndfileError) as error:
        raise BrokenFileError(path, f"can't be decoded ({error})") from error


def picture_problem(path: Path) -> str | None:
    """The fault of a picture file as far as its header and its end tell, or None. Decodes nothing."""
    from PIL import Image, UnidentifiedImageError

    from cmx_fast.data.media import picture_formats

    if not path.is_file():
        return "missing"
    try:
        with Image.open(path) as image:
            kind = image.format
    except UnidentifiedImageError:
        return "not a picture"
    except picture_formats.DAMAGE as error:
        return f"not a readable picture ({error})"
    return "truncated" if picture_formats.cut_short(path, kind) else None


def read_audio(path: Path, sample_rate: int, max_samples: int, *, mix: bool = False) -> Tensor:
    """The first channel as float32 ``(samples,)`` at ``sample_rate``, at most ``max_samples`` of it.

    ``mix``: the mean of the channels instead.

    Another rate is resampled (band-limited, torchaudio).

    Raises:
        BrokenFileError: the file can't be decoded, is silent, or has NaN or infinity in it.
    """
    soundfile = require("soundfile", "media")
    try:
        if path.is_file() and (path.suffix.lower() in BY_FFMPEG or is_shortened(path)):
            samples, rate = ffmpeg_sounds.decode(path, max_samples / sample_rate)
            return sounding(path, torch.from_numpy(samples), rate, sample_rate, max_samples, mix=mix)
        with soundfile.SoundFile(os.fsencode(path)) as stream:
            rate = stream.samplerate
            if rate not in RATES:
                raise BrokenFileError(path, f"says it has {rate} samples per second")
            frames = -(-max_samples * rate // sample_rate)
            samples = stream.read(frames, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise BrokenFileError(path, f"can't be decoded ({error})") from error
    return sounding(path, torch.from_numpy(samples), rate, sample_rate, max_samples, mix=mix)


def sounding(
    path: Path, samples: Tensor, rate: int, sample_rate: int, max_samples: int, *, mix: bool = False
) -> Tensor:
    """Decoded ``(samples, channels)`` at ``rate`` as :func:`read_audio` gives them; ``path`` is for its errors."""
    if rate not in RATES:
        raise BrokenFileError(path, f"says it has {rate} samples per second")
    samples = samples[: -(-max_samples * rate // sample_rate)]
    wave = resample((samples.mean(1) if mix else samples[:, 0]).contiguous(), rate, sample_rate)
    if not torch.isfinite(wave).all():
        raise BrokenFileError(path, "holds NaN or infinity")
    if not wave.any():
        raise BrokenFileError(path, "is silent")
    return wave[:max_samples].clone()


def read_picture(path: Path, size: int, *, shorter: int | None = None) -> Tensor:
    """RGB uint8 ``(3, size, size)``: upright, the shorter side resized to ``shorter``, then the centre cropped.

    ``shorter`` is size * 256 / 224 unless given.
    """
    whole = stretched(
        path, lambda path, width, height: fitted(path, width, height, size, shorter), draft=True
    )
    return centred(whole, size).contiguous()


def stretched(
    path: Path, target: Callable[[Path, int, int], tuple[int, int]], *, draft: bool = False
) -> Tensor:
    """RGB uint8 ``(3, h, w)``, upright, resized to ``target`` of the picture's width and height.

    ``draft``: a JPEG file much larger than that may be decoded at a half, a quarter or an eighth of its size.

    Raises:
        BrokenFileError: the file can't be decoded, or ``target`` raises it.
    """
    from PIL import Image

    from cmx_fast.data.media.picture_formats import DAMAGE, orientation, rgb

    try:
        with Image.open(path) as opened:
            turn = orientation(opened)
            wanted = turn.size(*target(path, *turn.size(*opened.size)))
            if draft:
                opened.draft("RGB", (min(wanted), min(wanted)))
            image = rgb(opened)
    except BrokenFileError:
        raise
    except DAMAGE as error:
        raise BrokenFileError(path, f"can't be decoded ({error})") from error
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    return turn(torch.from_numpy(np.array(image)).permute(2, 0, 1)).contiguous()


def fitted(path: Path, width: int, height: int, size: int, shorter: int | None = None) -> tuple[int, int]:
    """The width and height that :func:`read_picture` resizes to before it crops.

    Raises:
        BrokenFileError: the longer side is more than :data:`LONGEST_SIDE` times the shorter.
    """
    if max(width, height) > LONGEST_SIDE * min(width, height):
        raise BrokenFileError(
            path, f"has {width}x{height} pixels, longer than {LONGEST_SIDE} times the shorter side"
        )
    scale = (round(size * 256 / 224) if shorter is None else shorter) / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def centred(picture: Tensor, size: int) -> Tensor:
    """The middle ``(..., size, size)`` of ``(..., h, w)``."""
    top, left = ((side - size) // 2 for side in picture.shape[-2:])
    return picture[..., top : top + size, left : left + size]
