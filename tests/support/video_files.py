"""Small video files whose frames carry their number and whose sound is known."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

RATE = 16000


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """A chirp of 200 Hz upwards, float32."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t)).astype(np.float32)


def picture(number: int, width: int, height: int) -> np.ndarray:
    """The number's eight bits as light and dark columns over a gradient, uint8 (height, width, 3)."""
    image = np.zeros((height, width, 3), np.uint8)
    for bit in range(8):
        image[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 30
    image[height // 2 :, :, 0] = np.linspace(20, 220, width).astype(np.uint8)
    return image


def numbers(frames: Tensor) -> list[int]:
    """The numbers that frames (T, 3, h, w) carry."""
    height, width = frames.shape[2:]
    band = frames[:, :, height // 8 : 3 * height // 8].float().mean((1, 2))
    bits = [band[:, int((bit + 0.3) * width / 8) : int((bit + 0.7) * width / 8)].mean(1) for bit in range(8)]
    return [sum(int(bit[row] > 125) << place for place, bit in enumerate(bits)) for row in range(len(frames))]


def write_video(
    path: Path,
    frames: int = 60,
    *,
    fps: int = 30,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    audio: str | None = "aac",
    audio_seconds: float | None = None,
    chunk: int = 1024,
    pixels: str = "yuv420p",
    rate: int = RATE,
    layout: str = "stereo",
    aspect: tuple[int, int] | None = None,
) -> Path:
    """Frames 0, 1, ... at ``fps`` or at ``times``, a key frame every 30, beside ``tone`` in packets of ``chunk``
    samples, the same in every channel."""
    import av

    width, height = size
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream(codec, rate=fps, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.codec_context.gop_size = 30
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(audio, rate=rate, layout=layout) if audio else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.time_base = Fraction(1, fps if times is None else 1000)
            frame.pts = number if times is None else round(times[number] * 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            wave = tone(frames / fps if audio_seconds is None else audio_seconds, rate)
            for start in range(0, len(wave), chunk):
                both = np.repeat(wave[None, start : start + chunk], sound.codec_context.channels, 0)
                if audio != "aac":
                    both = (both * 32767).astype(np.int16).T.reshape(1, -1)
                samples = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(both), format="fltp" if audio == "aac" else "s16", layout=layout
                )
                samples.rate, samples.pts, samples.time_base = rate, start, Fraction(1, rate)
                container.mux(sound.encode(samples))
            container.mux(sound.encode())
    return path


def turned(content: bytes, quarters: int = 1) -> bytes:
    """An MP4 whose video, its first track, says to be shown turned by so many quarters clockwise."""
    matrix = content.index(b"tkhd") + 44
    a, b = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    turn = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    return content[:matrix] + turn + content[matrix + 36 :]


def with_cover(content: bytes, picture: bytes) -> bytes:
    """An MP4 with a JPEG as its cover, which comes before the video stream."""

    def box(kind: bytes, inside: bytes) -> bytes:
        return struct.pack(">I", 8 + len(inside)) + kind + inside

    data = box(b"data", struct.pack(">II", 13, 0) + picture)
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", box(b"covr", data))))
    moov = content.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", content, moov)
    children = content[moov + 8 : moov + size]
    header = struct.unpack_from(">I", children)[0]  # mvhd
    # Media data lies before or behind: chunk offsets count from the start of the file, so what grows goes behind it.
    free = box(b"free", bytes(size - 8))
    grown = box(b"moov", children[:header] + udta + children[header:])
    return content[:moov] + free + content[moov + size :] + grown


def write_broken(folder: Path) -> dict[str, Path]:
    """One file of each kind that can't be used, by what is wrong with it; "damaged" shows only on decoding."""
    whole = write_video(folder / "whole.mp4", 90).read_bytes()
    files = {
        kind: folder / f"{kind}.mp4"
        for kind in ("truncated", "headless", "empty", "text", "silent", "short", "missing", "damaged")
    }
    files["truncated"].write_bytes(whole[: len(whole) * 6 // 10])
    files["headless"].write_bytes(whole[len(whole) // 2 :])
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is not a video\n" * 50)
    write_video(files["silent"], audio=None)
    write_video(files["short"], 15)
    start = whole.index(b"mdat") + 8
    files["damaged"].write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    (folder / "whole.mp4").unlink()
    return files
