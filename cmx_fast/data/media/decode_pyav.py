"""Decodes by PyAV, which brings its own FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast._extras import require
from cmx_fast.data.media.moments import EPSILON, BrokenVideoError, Media, address, resized, shown
from cmx_fast.data.media.picture_formats import Turn

av = require("av", "media")
#: A header that promises this much more than there is belongs to a truncated file.
TRUNCATED = 0.5
#: Files that play longer than a day, in seconds, have a damaged clock.
LONGEST = 86400.0
#: Sound is decoded from the beginning up to this second, so that the noise which AAC and others only describe comes
#: out the same in any clip; later than that from a seek, with so many seconds for the codec to settle in.
FROM_THE_BEGINNING, PREROLL = 30.0, 0.25
#: Sample positions follow from the samples before them; only timestamps this many seconds off mean a gap.
GAP = 0.05
#: Seconds to seek further back where a key frame comes after the frame that it should come before.
FURTHER_BACK = (0.0, 2.0, float("inf"))


def probe(path: Path, audio: bool) -> Media:
    """See :func:`cmx_fast.data.media.decode.probe`."""
    with _opened(path, "not a video, or too broken to open") as container:
        return _measure(path, container, audio)


def frames(path: Path, moments: list[float], short_side: int) -> Tensor:
    """See :func:`cmx_fast.data.media.decode.read_frames`."""
    with _opened(path, "can't be decoded") as container:
        stream = _video(path, container)
        stream.codec_context.thread_count = 1  # the loader's workers are the threads
        for further in FURTHER_BACK:
            if shown_frames := _decode(path, container, stream, moments, further):
                return _pictures(path, shown_frames, short_side)
    raise BrokenVideoError(path, f"frames from {min(moments):g} to {max(moments):g} s can't be decoded")


def samples(path: Path, start: float, stop: float, reach: int) -> tuple[Tensor, int, float]:
    """Samples ``(channels, n)`` as stored from ``start`` to ``stop`` seconds, their rate, and the second of the first.

    On either side there are ``reach`` more, as far as the file has them.
    """
    parts: list[np.ndarray] = []
    begin = 0.0
    with _opened(path, "sound can't be decoded") as container:
        if not container.streams.audio:
            raise BrokenVideoError(path, "has no audio")
        stream = container.streams.audio[0]
        rate = stream.rate
        start, stop = start - reach / rate, stop + reach / rate
        if start > FROM_THE_BEGINNING:
            container.seek(int((start - PREROLL) / stream.time_base), stream=stream, backward=True)
        to_planes = av.AudioResampler(format="fltp")
        here = None  # the second at which the next samples begin
        for frame in container.decode(stream):
            if here is None or (frame.time is not None and abs(frame.time - here) > GAP):
                behind, here = here, frame.time or 0.0
                if parts and behind is not None:
                    gap = max(0, round((min(here, stop) - behind) * rate))
                    parts.append(np.zeros((parts[-1].shape[0], gap), np.float32))
            if here >= stop:
                break
            for converted in to_planes.resample(frame):
                planes = converted.to_ndarray()
                if here + planes.shape[1] / rate > start:
                    if not parts:
                        begin = here
                    parts.append(planes)
                here += planes.shape[1] / rate
        if parts:
            return torch.from_numpy(np.concatenate(parts, 1)), rate, begin
    raise BrokenVideoError(path, f"plays no sound from {start:g} to {stop:g} s")


def presented(path: Path) -> tuple[Tensor, float, tuple[int, int], Turn]:
    """The second at which each frame begins, sorted; the last one's end; (width, height) as stored; and the turn.

    Decodes the first frame alone.
    """
    with _opened(path, "can't be read") as container:
        stream = _video(path, container)
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        if not packets:
            raise BrokenVideoError(path, "shows nothing")
        stamps = sorted((_stamp(p), p.duration or 0) for p in packets)
        begins = _seconds([stamp for stamp, _ in stamps], stream)
        size = stream.width, stream.height
        stream.codec_context.thread_count = 1
        first = next((f for p in (*packets, None) for f in stream.codec_context.decode(p)), None)
        return (
            begins,
            float(sum(stamps[-1]) * stream.time_base),
            size,
            Turn() if first is None else _turn(first),
        )


@contextmanager
def _opened(path: Path, otherwise: str) -> Iterator[Any]:
    """The file's container; every error in opening or reading it becomes a BrokenVideoError."""
    try:
        with av.open(address(path), metadata_errors="ignore") as container:
            yield container
    except BrokenVideoError:
        raise
    except av.error.FFmpegError as error:
        raise BrokenVideoError(path, f"{otherwise} ({error.strerror})") from error
    except Exception as error:  # a damaged header can be wrong anywhere: no codec, no rate, a time base of 0
        raise BrokenVideoError(path, f"{otherwise} ({type(error).__name__}: {error})") from error


def _measure(path: Path, container: Any, audio: bool) -> Media:
    """The media that the streams of an open file play, by their last packets."""
    video = _video(path, container)
    streams = [video]
    if audio:
        if not container.streams.audio:
            raise BrokenVideoError(path, "has no audio")
        streams.append(container.streams.audio[0])
    promised = {s.index: (s.start_time or 0) + s.duration if s.duration else 0 for s in streams}
    if container.duration:
        container.seek((container.start_time or 0) + container.duration)
    ends = _ends(container, streams)
    if min(ends.values()) == 0:  # the other track ended before the key frame that the seek went to
        container.seek(0)
        ends = _ends(container, streams)
    spans = []
    for stream in streams:
        tick = stream.time_base
        there, claimed = (float(stamps[stream.index] * tick) for stamps in (ends, promised))
        if claimed - there > TRUNCATED:
            raise BrokenVideoError(path, f"truncated: {there:.1f} of {claimed:.1f} s are there")
        spans.append((float((stream.start_time or 0) * tick), there))
    begin, end = max(span[0] for span in spans), min(span[1] for span in spans)
    if not 0 < end - begin < LONGEST:
        raise BrokenVideoError(path, f"plays {end - begin:g} s")
    resized(path, video.width, video.height, 1)
    lengths = [last - first for first, last in spans]
    fps = float(video.average_rate or video.guessed_rate or 0)
    return Media(lengths[0], lengths[1] if audio else 0.0, fps, video.width, video.height, begin, end - begin)


def _ends(container: Any, streams: list[Any]) -> dict[int, int]:
    """The last moment that the coming packets of each stream play, in its ticks; 0 without any."""
    ends = {s.index: 0 for s in streams}
    for packet in container.demux(streams):
        if packet.pts is not None and packet.size and not packet.is_corrupt:
            index = packet.stream.index
            ends[index] = max(ends[index], packet.pts + (packet.duration or 0))
    return ends


def _video(path: Path, container: Any) -> Any:
    """The first video stream that is not a cover picture."""
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        raise BrokenVideoError(path, "has no video")
    return stream


def _decode(path: Path, container: Any, stream: Any, moments: list[float], further: float) -> list[Any]:
    """The frames shown at ``moments``; empty where they can't be decoded from there.

    Decoding begins at the key frame before the first moment or ``further`` seconds earlier.
    """
    tick = float(stream.time_base)
    first, last = min(moments) + EPSILON, max(moments) + EPSILON
    from_the_beginning = first - further <= 0
    container.seek(0 if from_the_beginning else int((first - further) / tick), stream=stream, backward=True)
    packets = []
    end = last
    for packet in container.demux(stream):
        packets.append(packet)
        if packet.dts is not None and packet.dts * tick > last:
            break  # all further frames are shown later still
    else:
        end = max(((_stamp(p) + (p.duration or 0)) * tick for p in packets if p.size), default=0.0)
    # AVI files may have no presentation times before decoding: then every frame is decoded and kept.
    begins = None
    if all(p.pts is not None for p in packets if p.size):
        begins = sorted({p.pts for p in packets if p.size and not p.is_discard})
        chosen = _choose(path, begins, end, moments, stream, from_the_beginning)
        if not chosen:
            return []
    wanted = set(chosen) if begins is not None else None
    frame_at: dict[int, Any] = {}
    context = stream.codec_context
    for packet in [*(p for p in packets if p.size), None]:
        if packet is not None:
            # Frames that no other refers to need not be decoded: half or more of an H.264 file.
            context.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            if wanted is None or frame.pts in wanted:
                frame_at[_stamp(frame)] = frame
        if wanted is not None and len(frame_at) == len(wanted):
            break
    if begins is None:
        chosen = _choose(path, sorted(frame_at), end, moments, stream, from_the_beginning)
    return [frame_at[stamp] for stamp in chosen] if frame_at.keys() >= set(chosen) else []


def _choose(
    path: Path, begins: list[int], end: float, moments: list[float], stream: Any, from_the_beginning: bool
) -> list[int]:
    """The timestamps among ``begins`` of the frames shown at ``moments``; empty where the first frame is missing."""
    if not begins:
        return []
    if not from_the_beginning and begins[0] * float(stream.time_base) > min(moments) + EPSILON:
        return []
    return [begins[place] for place in shown(_seconds(begins, stream), end, moments, path).tolist()]


def _stamp(thing: Any) -> int:
    """A packet's or frame's presentation timestamp, where there is none its decoding timestamp."""
    return thing.pts if thing.pts is not None else thing.dts or 0


def _seconds(stamps: list[int], stream: Any) -> Tensor:
    return torch.tensor(stamps, dtype=torch.float64) * float(stream.time_base)


def _pictures(path: Path, decoded: list[Any], short_side: int) -> Tensor:
    """Decoded frames as uint8 (T, 3, h, w)."""
    width, height = resized(path, decoded[0].width, decoded[0].height, short_side)
    converter = av.video.reformatter.VideoReformatter()
    pictures = np.empty((len(decoded), 3, height, width), np.uint8)
    places: dict[int, int] = {}
    for place, frame in enumerate(decoded):
        earlier = places.setdefault(id(frame), place)
        if earlier < place:
            pictures[place] = pictures[earlier]
            continue
        if (width, height) == (frame.width, frame.height) and width % 8:
            # Where nothing is resized, swscale's conversion to planes leaves the last width % 8 columns unwritten.
            whole = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            pictures[place] = whole.transpose(2, 0, 1)
            continue
        # To planes: no bytes to interleave and part again, and colours at full width. The loader's workers are the
        # threads here, too.
        planar = converter.reformat(frame, width, height, "gbrp", interpolation="BILINEAR", threads=1)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            pictures[place, channel] = rows[:height, :width]
    return _turn(decoded[0])(torch.from_numpy(pictures)).contiguous()


def _turn(frame: Any) -> Turn:
    """The turn that the file asks for, to the nearest quarter (TorchCodec does the same)."""
    return Turn(False, round(frame.rotation / 90) % 4)
