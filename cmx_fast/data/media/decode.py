"""Reads frames and sound at given seconds of a video file, by TorchCodec, PyAV or DALI behind one interface."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from cmx_fast._extras import MissingExtraError
from cmx_fast.data.media.moments import BrokenVideoError, Media
from cmx_fast.data.media.resampling import RATES, ratio, resample

#: "auto" is PyAV: per core faster than TorchCodec (``cmx bench data``), without FFmpeg on the system, and right in AVI
#: and MPEG-TS files with B-frames. There TorchCodec 0.13 takes other frames or none, and a damaged MPEG-TS file can
#: crash the process; files whose cover picture comes before the video it can't decode.
BACKENDS = ("torchcodec", "pyav", "dali", "auto")
#: The backends of picture and sound files: Pillow and libsndfile in loader workers, or DALI.
FILE_BACKENDS = ("auto", "dali")
#: Samples decoded beyond either end of the part to be resampled: more than torchaudio's filter reaches.
_REACH = 256


def probe(path: Path | str, *, audio: bool = True) -> Media:
    """Open a file and go to its end without decoding anything, for the lengths and sizes of its tracks.

    Reads the header, and the packets from the last key frame on: some milliseconds. ``audio=False`` leaves the audio
    track out of account.

    Raises:
        BrokenVideoError: missing, empty, not a video, truncated, or without a video (or audio) track.
    """
    path = Path(path)
    if problem := _missing(path):
        raise BrokenVideoError(path, problem)
    return _backend("pyav").probe(path, audio)


def read_frames(
    path: Path | str, times: Sequence[float], *, short_side: int, backend: str = "auto"
) -> Tensor:
    """The frames shown at ``times``, uint8 RGB ``(T, 3, h, w)``: the last to begin at or before each moment.

    The shorter side is resized to ``short_side`` (bilinear, anti-aliased), the aspect ratio kept. ``times`` are
    seconds on the file's clock (:class:`Media`), in any order; moments up to 0.1 s outside the track get its first
    or last frame. Every backend gives the same frames. PyAV's and TorchCodec's pixels of H.264 are the same where
    nothing is resized; else they differ at coloured edges, since PyAV resizes luma and chroma and TorchCodec RGB.
    Decodes from the key frame before the first moment to the last moment; DALI on the GPU if there is one.

    Raises:
        BrokenVideoError: the file can't be opened or decoded, shows no frame then, or is 16 times as wide as high (or
            the other way round).
        MissingExtraError: the backend is not installed.
        ValueError: another backend, no moments, or a ``short_side`` below 1.
    """
    path, moments = Path(path), [float(moment) for moment in times]
    if not moments or not all(map(math.isfinite, moments)):
        raise ValueError(f"times must be finite seconds, at least one, got {moments}")
    if short_side < 1:
        raise ValueError(f"short_side must be at least 1, got {short_side}")
    decoder = _backend(backend)
    if problem := _missing(path):
        raise BrokenVideoError(path, problem)
    return decoder.frames(path, moments, short_side)


def read_wave(
    path: Path | str, start: float, seconds: float, sample_rate: int, *, backend: str = "auto"
) -> Tensor:
    """The sound from ``start`` on, float32 ``(round(seconds * sample_rate),)`` in [-1, 1], channels averaged.

    ``start`` is in seconds on the file's clock (:class:`Media`). Another rate is resampled (band-limited, torchaudio).
    Where the track does not play there is silence.

    Raises:
        BrokenVideoError: the file can't be opened or decoded, or plays nothing at all then.
        MissingExtraError: the backend is not installed.
        ValueError: another backend, or one without audio ("dali"); a length or rate that leaves no sample.
    """
    path = Path(path)
    count = round(seconds * sample_rate)
    if sample_rate < 1 or count < 1 or not math.isfinite(start):
        raise ValueError(
            f"start={start}, seconds={seconds} and sample_rate={sample_rate} must leave at least one sample"
        )
    if backend == "dali":
        raise ValueError("backend='dali' takes no audio out of videos; use 'torchcodec', 'pyav' or 'auto'")
    decoder = _backend(backend)
    if problem := _missing(path):
        raise BrokenVideoError(path, problem)
    first = round(start * sample_rate)
    native, rate, begin = decoder.samples(path, first / sample_rate, (first + count) / sample_rate, _REACH)
    # Whole periods of the resampling filter lie before the wanted part, so that any clip of a file is resampled alike.
    if rate not in RATES:
        raise BrokenVideoError(path, f"says its sound has {rate} samples per second")
    source, target = ratio(rate, sample_rate)
    margin = math.ceil(_REACH / source)
    period = first // target - margin
    stop = math.ceil((first + count) / target) + margin
    wave = torch.zeros((stop - period) * source)
    offset = round(begin * rate) - period * source
    low, high = max(0, -offset), min(native.shape[1], len(wave) - offset)
    if high <= low:
        raise BrokenVideoError(path, f"plays no sound from {start:g} to {start + seconds:g} s")
    wave[offset + low : offset + high] = native[:, low:high].mean(0)
    wave = resample(wave, rate, sample_rate)
    skipped = first - period * target
    return wave[skipped : skipped + count].nan_to_num(0).clamp(-1, 1)


def check_backend(backend: str, choices: Sequence[str] = BACKENDS) -> None:
    """
    Raises:
        ValueError: the backend is none of ``choices``.
        MissingExtraError: it is not installed. PyAV, which "auto" takes, is looked for where a video is read: pictures
            need none.
    """
    if backend not in choices:
        raise ValueError(f"backend={backend!r}; expected one of {', '.join(choices)}")
    if backend != "auto":
        _backend(backend)


def unavailable(backend: str) -> str | None:
    """The reason why a backend can't be used here, with the remedy; None where it can."""
    try:
        _backend(backend)
    except MissingExtraError as error:
        return str(error)
    return None


def _missing(path: Path) -> str | None:
    if not path.is_file():
        return "is not a file" if path.exists() else "missing"
    return None if path.stat().st_size else "is empty"


@functools.cache
def _backend(name: str) -> ModuleType:
    """The module that decodes with ``name``."""
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r}; expected one of {', '.join(BACKENDS)}")
    return importlib.import_module(f"cmx_fast.data.media.decode_{'pyav' if name == 'auto' else name}")
