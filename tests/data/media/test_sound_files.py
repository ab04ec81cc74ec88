"""WAV files as programs write them: by header, by pipe, with chunks behind the sound. Read alike, or named."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cmx_fast.data.media.decode import unavailable
from cmx_fast.data.media.files import BrokenFileError, audio_problem, audio_seconds, read_audio

RATE = 8000
WAVE = np.sin(np.arange(RATE) * 0.3) * np.linspace(0.1, 0.9, RATE)
READERS = ["libsndfile", *(["dali"] if unavailable("dali") is None else [])]


def read(reader: str, path: Path, *, mix: bool = False) -> torch.Tensor:
    if reader == "libsndfile":
        return read_audio(path, RATE, 2 * RATE, mix=mix)
    from cmx_fast.data.media.decode_dali_files import read_sounds

    (sound,) = read_sounds([path], RATE, 2 * RATE, mix=mix)
    if isinstance(sound, BrokenFileError):
        raise sound
    return sound


def riff(kind: bytes, *chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return kind + struct.pack("<I", 4 + len(body) if size is None else size) + b"WAVE" + body


def header(channels: int = 1, bits: int = 16, tag: int = 1) -> tuple[bytes, bytes]:
    step = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, RATE, RATE * step, step, bits)


PCM = (WAVE * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "options",
    [
        {"subtype": subtype, "format": format}
        for format in ("WAV", "WAVEX", "RF64")
        for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    ]
    + [{"format": "FLAC"}, {"format": "OGG"}, {"format": "AIFF"}, {"format": "W64"}],
)
def test_every_width_is_the_same_sound(tmp_path, reader, options):
    path = tmp_path / "a.wav"
    soundfile.write(path, WAVE, RATE, **options)
    coarse = 0.04 if options["format"] == "OGG" else 1e-2 if options.get("subtype") == "PCM_U8" else 1e-4
    assert audio_problem(path) is None
    assert audio_seconds(path) == 1
    assert np.abs(read(reader, path).numpy() - WAVE).max() < coarse


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("whole", [0x7FFFF024, 0x7FFFFFFF, 0x80000000, 0x80000024, 0xFFFFFFFF])
def test_a_length_that_a_pipe_could_not_know_is_no_truncation(tmp_path, reader, whole):
    path = tmp_path / "pipe.wav"
    content = bytearray(riff(b"RIFF", header(), (b"data", PCM), size=whole))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", whole - 36 if whole < 0xFFFFFFFF else whole)
    path.write_bytes(content)
    assert audio_problem(path) is None
    assert np.abs(read(reader, path).numpy() - WAVE).max() < 1e-4


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_cut_short_is_still_named(tmp_path, share):
    path = tmp_path / "cut.wav"
    content = riff(b"RIFF", header(), (b"data", PCM))
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in audio_problem(path)


@pytest.mark.parametrize("reader", READERS)
def test_chunks_around_the_sound_are_not_heard(tmp_path, reader):
    path = tmp_path / "listed.wav"
    noise = np.random.default_rng(0).bytes(999)
    path.write_bytes(
        riff(
            b"RIFF", (b"JUNK", noise), header(), (b"LIST", b"INFO" + noise), (b"data", PCM), (b"LIST", noise)
        )
    )
    assert audio_problem(path) is None
    assert np.abs(read(reader, path).numpy() - WAVE).max() < 1e-4
    path.write_bytes(path.read_bytes() + noise)  # and bytes behind the end
    assert audio_problem(path) is None
    assert np.abs(read(reader, path).numpy() - WAVE).max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
def test_the_first_channel_or_the_mean_of_all(tmp_path, reader, channels, format):
    path = tmp_path / "many.wav"
    many = WAVE[:, None] * (1 + np.arange(channels)) / channels
    soundfile.write(path, many, RATE, format=format, subtype="FLOAT")
    assert np.abs(read(reader, path).numpy() - many[:, 0]).max() < 1e-6
    assert np.abs(read(reader, path, mix=True).numpy() - many.mean(1)).max() < 1e-6


@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_samples_is_named(tmp_path, reader):
    path = tmp_path / "nothing.wav"
    path.write_bytes(riff(b"RIFF", header(), (b"data", b"")))
    assert audio_problem(path) == "has no samples"
    with pytest.raises(BrokenFileError, match=r"nothing.wav"):
        read(reader, path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a:b.wav", "caf\udce9.wav", "p%03d.wav", "-.wav"])
def test_any_bytes_make_a_name(tmp_path, reader, name):
    soundfile.write(tmp_path / "plain.wav", WAVE, RATE)
    shutil.copy(tmp_path / "plain.wav", os.fsencode(tmp_path) + b"/" + os.fsencode(name))
    assert audio_problem(tmp_path / name) is None
    assert np.abs(read(reader, tmp_path / name).numpy() - WAVE).max() < 1e-4


def write_aac(path: Path, format: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(WAVE[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = RATE, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.mark.parametrize("reader", READERS)
def test_sounds_of_telephones(tmp_path, reader):
    path = tmp_path / "memo.M4A"
    write_aac(path, "ipod")
    assert audio_problem(path) is None
    sound = read(reader, path).numpy()
    assert len(sound) == pytest.approx(RATE, abs=1200)  # AAC has whole frames of 1,024 samples
    middle = slice(1000, 7000)
    assert np.abs(sound[middle] - WAVE[middle]).max() < 0.1
    assert audio_seconds(path) == pytest.approx(len(sound) / RATE)
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable audio file" in audio_problem(path)
    with pytest.raises(BrokenFileError, match=r"memo.M4A: can't be decoded"):
        audio_seconds(path)
    with pytest.raises(BrokenFileError, match=r"memo.M4A: can't be decoded"):
        read(reader, path)


def test_a_video_without_sound_is_no_sound(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "silent.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    assert audio_problem(path) == "has no sound"
    with pytest.raises(BrokenFileError, match="it has no sound"):
        read_audio(path, RATE, RATE)
