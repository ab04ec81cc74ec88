from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")

from video_files import RATE, numbers, tone, write_broken, write_video

from cmx_fast._extras import MissingExtraError
from cmx_fast.data.media import decode
from cmx_fast.data.media.decode import BrokenVideoError, probe, read_frames, read_wave

UNEVEN = [0.0, 0.02, 0.1, 0.11, 0.35, 0.4, 0.41, 0.7, 0.9, 0.95]
FILES = {
    "b_frames.mp4": {"options": {"bf": "3", "b_strategy": "0"}},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=20:bframes=3"}},
    "intra.avi": {"codec": "mpeg4", "audio": "pcm_s16le"},
    "mpeg4.mkv": {"codec": "mpeg4"},
    "all_sound_first.mkv": {"codec": "mpeg4", "audio": "pcm_s16le", "chunk": 10**6},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / name, 90, **options) for name, options in FILES.items()}


def needs(backend: str) -> None:
    if reason := decode.unavailable(backend):
        pytest.skip(reason)


@pytest.mark.parametrize("name", FILES)
def test_probe_measures_both_tracks(files, name):
    media = probe(files[name])
    assert (media.width, media.height, media.fps) == (64, 48, 30)
    assert media.video_seconds == pytest.approx(3, abs=0.05)
    assert media.audio_seconds == pytest.approx(3, abs=0.08)
    assert (media.start, media.seconds) == (pytest.approx(0, abs=0.03), pytest.approx(3, abs=0.08))


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "dali"])
@pytest.mark.parametrize("name", FILES)
def test_every_backend_gives_the_frame_shown(files, name, backend):
    needs(backend)
    if backend == "dali" and "mpeg4" in FILES[name].values():
        pytest.skip("DALI decodes no MPEG-4 without a GPU")
    for start in (0.0, 0.634, 1.9, 2.4):
        times = [start + k / 30 for k in range(15)]
        frames = read_frames(files[name], times, short_side=48, backend=backend)
        assert frames.shape == (15, 3, 48, 64) and frames.dtype == torch.uint8
        assert numbers(frames) == [int(time * 30 + 0.01) for time in times]
        reference = read_frames(files[name], times, short_side=48, backend="pyav")
        assert (frames.float() - reference.float()).abs().mean() < 3


@pytest.mark.parametrize(
    ("short_side", "least", "largest"),
    # As stored: the same bits by PyAV and TorchCodec. Resized: PyAV resizes luma and chroma, TorchCodec the RGB that it
    # has made of them, which shows at coloured edges.
    [(144, 100.0, 0), (72, 36.0, 48)],
)
def test_backends_give_the_same_pixels_of_h264(tmp_path, short_side, least, largest):
    needs("torchcodec")
    path = write_video(tmp_path / "a.mp4", 60, size=(192, 144), options={"bf": "2"})
    times = [0.2 + k / 12 for k in range(16)]
    ours, theirs = (
        read_frames(path, times, short_side=short_side, backend=backend).double()
        for backend in ("pyav", "torchcodec")
    )
    error = (ours - theirs).square().mean().clamp_min(1e-6)
    assert 10 * torch.log10(255**2 / error) > least
    assert (ours - theirs).abs().max() <= largest


@pytest.mark.parametrize("width", [64, 66, 68, 70])
def test_frames_that_are_not_resized_are_whole_at_any_width(tmp_path, width):
    """swscale leaves columns beyond a multiple of eight unwritten where it converts to planes and resizes nothing."""
    import av

    file = write_video(tmp_path / "video.mp4", 3, size=(width, 48))
    with av.open(str(file)) as container:
        whole = next(container.decode(video=0)).to_ndarray(format="rgb24")
    for _ in range(2):
        frame = read_frames(file, [0.0], short_side=48, backend="pyav")[0]
        assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - whole).max() <= 2


@pytest.mark.parametrize("rate", [RATE, 24000])
@pytest.mark.parametrize("name", ["b_frames.mp4", "intra.avi", "all_sound_first.mkv"])
def test_backends_give_the_same_sound(files, name, rate):
    needs("torchcodec")
    for start in (0.0, 0.777, 1.9):
        ours, theirs = (
            read_wave(files[name], start, 1.0, rate, backend=backend) for backend in ("pyav", "torchcodec")
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "dali"])
def test_frames_of_uneven_length_in_any_order(tmp_path, backend):
    needs(backend)
    path = write_video(tmp_path / "uneven.mp4", 10, times=UNEVEN)
    times = [0.4, 0.05, 0.349, 0.35, 0.94, 0.05, 0.0]
    frames = read_frames(path, times, short_side=48, backend=backend)
    assert numbers(frames) == [5, 1, 3, 4, 8, 1, 0]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_the_file_says_which_way_up_and_how_large(tmp_path, backend):
    needs(backend)
    path = write_video(tmp_path / "wide.mp4", 5, size=(96, 40))
    assert read_frames(path, [0.1], short_side=20, backend=backend).shape == (1, 3, 20, 48)
    assert read_frames(path, [0.1], short_side=80, backend=backend).shape == (1, 3, 80, 192)


def test_what_lies_before_the_key_frame_is_not_decoded(files, tmp_path):
    import av

    with av.open(str(files["b_frames.mp4"])) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        key = max(p.dts for p in packets if p.is_keyframe and p.pts * p.time_base <= 1.5)
        early = [(p.pos, p.size) for p in packets if p.dts < key]
    assert early
    content = bytearray(files["b_frames.mp4"].read_bytes())
    for position, size in early:
        content[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    assert numbers(read_frames(path, [2.5, 1.5], short_side=48, backend="pyav")) == [75, 45]
    with pytest.raises(BrokenVideoError, match="can't be decoded"):
        read_frames(path, [0.5], short_side=48, backend="pyav")


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
@pytest.mark.parametrize("name", ["intra.avi", "b_frames.mp4", "all_sound_first.mkv"])
def test_wave_of_any_part(files, name, backend):
    needs(backend)
    whole = tone(3)
    for start, seconds in ((0.0, 1.0), (1.234, 0.7), (2.0, 1.0)):
        wave = read_wave(files[name], start, seconds, RATE, backend=backend)
        assert wave.shape == (round(seconds * RATE),) and wave.dtype == torch.float32
        first = round(start * RATE)
        expected = whole[first : first + len(wave)]
        assert np.abs(wave.numpy() - expected).mean() < (0.01 if name.endswith("mp4") else 1e-4)


def test_wave_at_another_rate_is_cut_from_one_grid(files):
    whole = read_wave(files["b_frames.mp4"], 0.0, 3.0, 24000)
    assert whole.shape == (72000,) and whole.abs().max() <= 1
    expected = np.interp(np.arange(72000) / 24000, np.arange(48000) / RATE, tone(3))
    assert np.abs(whole.numpy() - expected).mean() < 0.02
    for first in (17, 24001, 47999):
        part = read_wave(files["b_frames.mp4"], first / 24000, 0.5, 24000)
        torch.testing.assert_close(part, whole[first : first + 12000], atol=1e-5, rtol=0)


def test_silence_where_nothing_plays(tmp_path):
    path = write_video(tmp_path / "half.avi", codec="mpeg4", audio="pcm_s16le", audio_seconds=1.0)
    wave = read_wave(path, 0.5, 1.0, RATE)
    assert wave[: RATE // 2 - 100].abs().max() > 0.3
    assert (wave[RATE // 2 + 100 :] == 0).all()
    with pytest.raises(BrokenVideoError, match="plays no sound"):
        read_wave(path, 1.5, 0.4, RATE)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated: .* of 3.0 s"),
        ("headless", "not a video"),
        ("empty", "is empty"),
        ("text", "not a video"),
        ("silent", "has no audio"),
        ("missing", "missing"),
    ],
)
def test_probe_names_what_is_wrong(tmp_path, kind, reason):
    path = write_broken(tmp_path)[kind]
    with pytest.raises(BrokenVideoError, match=reason) as caught:
        probe(path)
    assert caught.value.path == path
    if kind == "silent":
        assert probe(path, audio=False).audio_seconds == 0


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
@pytest.mark.parametrize("kind", ["damaged", "headless", "empty", "text", "missing"])
def test_what_can_not_be_decoded_is_named(tmp_path, kind, backend):
    needs(backend)
    path = write_broken(tmp_path)[kind]
    with pytest.raises(BrokenVideoError, match=kind):
        read_frames(path, [1.0, 1.5], short_side=48, backend=backend)
    if kind != "damaged":
        with pytest.raises(BrokenVideoError, match=kind):
            read_wave(path, 1.0, 1.0, RATE, backend=backend)


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_gives_frames_or_a_named_error(files, tmp_path, name):
    generator = np.random.default_rng(0)
    whole, path = np.frombuffer(files[name].read_bytes(), np.uint8), tmp_path / name
    named = 0
    for _ in range(25):
        content = whole.copy()
        content[generator.integers(0, len(content), 40)] = generator.integers(0, 256, 40, dtype=np.uint8)
        content[generator.integers(0, 600, 20)] = generator.integers(0, 256, 20, dtype=np.uint8)
        path.write_bytes(content)
        for use in (
            lambda: probe(path),
            lambda: read_frames(path, [1.0, 1.5], short_side=48, backend="pyav"),
            lambda: read_wave(path, 1.0, 0.5, RATE, backend="pyav"),
        ):
            try:
                use()
            except BrokenVideoError:
                named += 1
    assert named


def test_titles_in_any_encoding(tmp_path):
    content = write_video(tmp_path / "titled.mp4", 30).read_bytes()
    assert b"VideoHandler" in content
    path = tmp_path / "latin.mp4"
    path.write_bytes(content.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert probe(path).fps == 30
    assert numbers(read_frames(path, [0.5], short_side=48, backend="pyav")) == [15]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "dali"])
def test_moments_outside(files, backend):
    needs(backend)
    path = files["b_frames.mp4"]
    assert numbers(read_frames(path, [-0.05, 3.05], short_side=48, backend=backend)) == [0, 89]
    for moment in (-0.5, 4.0):
        with pytest.raises(BrokenVideoError, match="shows no frame at"):
            read_frames(path, [1.0, moment], short_side=48, backend=backend)


def test_refuses(files):
    path = files["b_frames.mp4"]
    with pytest.raises(ValueError, match="times must be finite"):
        read_frames(path, [], short_side=48)
    with pytest.raises(ValueError, match="times must be finite"):
        read_frames(path, [float("nan")], short_side=48)
    with pytest.raises(ValueError, match="short_side"):
        read_frames(path, [0.0], short_side=0)
    with pytest.raises(ValueError, match="backend='ffmpeg'"):
        read_frames(path, [0.0], short_side=48, backend="ffmpeg")
    with pytest.raises(ValueError, match="takes no audio"):
        read_wave(path, 0.0, 1.0, RATE, backend="dali")
    with pytest.raises(ValueError, match="at least one sample"):
        read_wave(path, 0.0, 0.0, RATE)


def test_a_backend_that_is_not_there_is_named(files, monkeypatch):
    monkeypatch.delitem(sys.modules, "cmx_fast.data.media.decode_dali", raising=False)
    monkeypatch.delitem(sys.modules, "cmx_fast.data.media.dali_pipelines", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    decode._backend.cache_clear()
    assert "cmx-fast[dali]" in decode.unavailable("dali")
    with pytest.raises(MissingExtraError, match=r"cmx-fast\[dali\]"):
        read_frames(files["b_frames.mp4"], [0.0], short_side=48, backend="dali")
