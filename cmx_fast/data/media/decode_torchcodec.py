"""Decodes by TorchCodec, which uses the FFmpeg that the system has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmx_fast._extras import MissingExtraError, require
from cmx_fast.data.media.moments import EPSILON, SLACK, BrokenVideoError, address, resized


def _loaded(module: str) -> Any:
    try:
        return require(module, "media")
    except (RuntimeError, OSError) as error:  # installed, but its message about FFmpeg is a page long
        raise MissingExtraError(
            "torchcodec does not find FFmpeg's shared libraries (libavcodec and its siblings): install ffmpeg with "
            "the system's package manager, or use backend='pyav', which brings its own"
        ) from error


decoders = _loaded("torchcodec.decoders")
transforms = _loaded("torchcodec.transforms")


def frames(path: Path, moments: list[float], short_side: int) -> Tensor:
    """See :func:`cmx_fast.data.media.decode.read_frames`."""
    try:
        # Two decoders, since the size that one resizes to has to be known when it is made; this one reads no packets.
        about = decoders.VideoDecoder(address(path), seek_mode="approximate").metadata
        width, height = resized(path, about.width, about.height, short_side)
        decoder = decoders.VideoDecoder(
            address(path), seek_mode="exact", transforms=[transforms.Resize((height, width))]
        )
        begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        if min(moments) < begin - SLACK or max(moments) > end + SLACK:
            raise BrokenVideoError(
                path,
                f"shows no frame at {min(moments):g} or {max(moments):g} s; it plays from {begin:g} to {end:g} s",
            )
        inside = [min(max(moment + EPSILON, begin), end - 1e-6) for moment in moments]
        return decoder.get_frames_played_at(inside).data
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, BrokenVideoError):
            raise
        raise BrokenVideoError(path, f"can't be decoded ({str(error).splitlines()[0]})") from error


def samples(path: Path, start: float, stop: float, reach: int) -> tuple[Tensor, int, float]:
    """See :func:`cmx_fast.data.media.decode_pyav.samples`."""
    try:
        decoder = decoders.AudioDecoder(address(path))
        rate = decoder.metadata.sample_rate
        begin = decoder.metadata.begin_stream_seconds or 0.0
        # The range begins at a whole sample, since TorchCodec cuts anywhere and does not say to which side it rounds.
        low = max(round(start * rate) - reach, round(begin * rate)) / rate
        played = decoder.get_samples_played_in_range(low, max(stop + reach / rate, low + 1 / rate))
    except (RuntimeError, ValueError, IndexError) as error:
        raise BrokenVideoError(path, f"sound can't be decoded ({str(error).splitlines()[0]})") from error
    return played.data.to(torch.float32), rate, played.pts_seconds
