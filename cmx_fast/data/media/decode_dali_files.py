"""Batches of picture and sound files by DALI: JPEG by nvJPEG where there is a GPU, sounds on the CPU.

Files that DALI refuses (MP3, a damaged file) or reads otherwise (:data:`FORMATS`, :data:`MODES`) go to Pillow or
libsndfile, which read them or name the damage; the ``cmx_fast`` logger says so once per kind of file.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cmx_fast.data.media import files
from cmx_fast.data.media.dali_pipelines import ENCODED, Graph, RefusedError, dali, decode, fn
from cmx_fast.data.media.files import BrokenFileError, centred, fitted, read_audio, sounding
from cmx_fast.data.media.picture_formats import DAMAGE, Turn, orientation

logger = logging.getLogger("cmx_fast")

#: Formats and modes that DALI reads as Pillow does. It takes the second of 16-bit bytes, reads CMYK and Lab of TIFF as
#: something else, and reads neither GIF nor WebP.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
#: A decoded file, or the error that names it.
Read = Tensor | BrokenFileError


def read_pictures(
    paths: Sequence[Path],
    size: int,
    *,
    shorter: int | None = None,
    stretch: bool = False,
    threads: int = 1,
) -> list[Read]:
    """Each picture as :func:`cmx_fast.data.media.files.read_picture` gives it, decoded together and left on the GPU.

    The pixels are within one level of its where nothing is resized; JPEG files that Pillow reads at a half or a
    quarter of their size are read whole here. ``stretch``: the whole picture in a square, instead of its middle.
    """

    def target(path: Path, width: int, height: int) -> tuple[int, int]:
        return (size, size) if stretch else fitted(path, width, height, size, shorter)

    pictures = stretched(paths, target, threads)
    result: list[Read] = []
    for path, picture in zip(paths, pictures, strict=True):
        try:
            whole = files.stretched(path, target, draft=True) if picture is None else picture
            result.append(centred(whole, size).contiguous())
        except BrokenFileError as error:
            result.append(error)
    return result


def stretched(
    paths: Sequence[Path], target: Callable[[Path, int, int], tuple[int, int]], threads: int = 1
) -> list[Tensor | None]:
    """Each file's RGB uint8 (3, h, w), resized to ``target`` of its path, width and height; None where DALI refuses."""
    samples: dict[int, dict[str, np.ndarray]] = {}
    turns: list[Turn] = []
    for place, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if image.format not in FORMATS or image.mode not in MODES:
                    _say(f"{image.format} pictures of mode {image.mode} are read by Pillow, not by DALI")
                    continue
                turn = orientation(image)
                width, height = turn.size(*target(path, *turn.size(*image.size)))
            content = np.fromfile(path, np.uint8)
        except DAMAGE:
            continue
        samples[place] = {"encoded": content, "size": np.array([height, width], np.float32)}
        turns.append(turn)

    def take(number: int, picture: Tensor) -> Tensor:
        return turns[number](picture.permute(2, 0, 1)).contiguous()

    pictures = decode(_PICTURES, list(samples.values()), take, threads)
    return _in_place(paths, samples, pictures, "Pillow")


def read_sounds(
    paths: Sequence[Path], sample_rate: int, max_samples: int, *, mix: bool = False, threads: int = 1
) -> list[Read]:
    """Each sound as :func:`cmx_fast.data.media.files.read_audio` gives it: the same samples."""
    samples = {}
    for place, path in enumerate(paths):
        try:
            content = np.fromfile(path, np.uint8)
        except OSError:
            continue
        if len(content):
            samples[place] = {"encoded": content}
    sounds = decode(
        _SOUNDS, list(samples.values()), lambda _, wave, rate: (wave.clone(), round(rate.item())), threads
    )
    result: list[Read] = []
    for path, sound in zip(paths, _in_place(paths, samples, sounds, "libsndfile"), strict=True):
        try:
            if sound is None:
                result.append(read_audio(path, sample_rate, max_samples, mix=mix))
            else:
                wave, rate = sound
                result.append(sounding(path, wave, rate, sample_rate, max_samples, mix=mix))
        except BrokenFileError as error:
            result.append(error)
    return result


def _in_place(paths: Sequence[Path], places: Any, decoded: list[Any], otherwise: str) -> list[Any]:
    results = [None] * len(paths)
    for place, value in zip(places, decoded, strict=True):
        if isinstance(value, RefusedError):
            _say(f"DALI refuses {paths[place].suffix} files; {otherwise} reads them ({value})")
        else:
            results[place] = value
    return results


@functools.lru_cache(64)
def _say(message: str) -> None:
    logger.info(message)


def _picture(sources: dict[str, Any], gpu: bool) -> list[Any]:
    picture = fn.decoders.image(
        sources["encoded"], device="mixed" if gpu else "cpu", output_type=dali.types.RGB
    )
    return [fn.resize(picture, size=sources["size"], interp_type=dali.types.INTERP_LINEAR, antialias=True)]


def _sound(sources: dict[str, Any], gpu: bool) -> list[Any]:
    return list(fn.decoders.audio(sources["encoded"], dtype=dali.types.FLOAT, downmix=False))


_PICTURES = Graph((ENCODED, ("size", dali.types.FLOAT, 1)), _picture)
_SOUNDS = Graph((ENCODED,), _sound)
