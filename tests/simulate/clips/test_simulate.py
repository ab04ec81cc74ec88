"""Simulated clips: what is stored, and that sound and picture belong together."""

from __future__ import annotations

import csv

import numpy as np
import pytest

pytest.importorskip("av")

import av

from cmx_fast.data.sets.video_sets import kinetics, vggsound
from cmx_fast.simulate.clips.objects import MovingObject
from cmx_fast.simulate.clips.simulate import ClipSettings, render_clip
from cmx_fast.simulate.clips.sounds import pitch, sound
from cmx_fast.simulate.commands import simulate_clips

SMALL = {"clips": 16, "width": 48, "height": 32, "seconds": 1.25, "fps": 12}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated") / "clips"
    simulate_clips(root, **SMALL)
    return root


def decoded(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return np.stack(frames), wave, rate


def test_layout_and_media_are_those_of_kinetics(stored):
    train, val, test = (kinetics(stored, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (12, 4, 4) and not train.skipped
    frames, wave, rate = decoded(val[0].path)
    assert frames.shape == (15, 32, 48, 3) and rate == 24000
    assert abs(len(wave) - 30000) <= 2048  # AAC stores whole blocks
    with (stored / "positions.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    stored_names = sorted(entry.name for entry in (*train, *val, *test))
    assert sorted(set(names)) == stored_names and len(names) == 20 * 15


def test_stored_pictures_are_those_that_were_rendered(stored):
    settings = ClipSettings(width=48, height=32, seconds=1.25, fps=12)
    frames, wave, _ = decoded(kinetics(stored, "train")[0].path)
    clip = render_clip(0, settings)
    assert kinetics(stored, "train")[0].path.parent.name == clip.label
    assert np.abs(frames.astype(float) - clip.frames).mean() < 12
    assert (
        np.corrcoef(
            np.abs(wave[:30000]).reshape(-1, 500).mean(1), np.abs(clip.wave).reshape(-1, 500).mean(1)
        )[0, 1]
        > 0.9
    )


def test_the_object_is_where_the_truth_says():
    settings = ClipSettings()
    for index in (0, 3, 5):
        clip, hits = render_clip(index, settings), 0
        for frame, (x, y, _) in zip(clip.frames, clip.track):
            # Rings and crescents have no middle: somewhere close by is their saturated colour.
            window = frame[max(0, int(y) - 8) : int(y) + 9, max(0, int(x) - 8) : int(x) + 9].astype(int)
            hits += (window.max(2) - window.min(2)).max() > 90
        assert hits == len(clip.frames)


def test_its_beat_shows_and_is_heard():
    settings = ClipSettings(width=64, height=48)
    clip = render_clip(0, settings)
    # A frame shows one moment: half a frame before and after it.
    loudness = np.abs(clip.wave[500:-500]).reshape(71, 1000).mean(1)
    assert np.corrcoef(loudness, clip.track[1:, 2])[0, 1] > 0.95


def moving(**changes):
    values = {
        "shape": "disc", "hue": 0.3, "radius": 12.0, "centre": (64.0, 48.0), "swing": (0.0, 0.0), "rate": (0.2, 0.2),
        "phase": (0.0, 0.0), "pulse": 3.0,
    }  # fmt: skip
    return MovingObject(**(values | changes))


def test_sound_follows_size_colour_and_height():
    def level(thing):
        wave = sound(thing, np.random.default_rng(0), 1.0, 24000, 128, 96)
        assert wave.dtype == np.float32 and np.abs(wave).max() <= 1
        return np.sqrt((wave**2).mean())

    assert level(moving(radius=16.0)) > 1.4 * level(moving())
    now = np.zeros(1)
    assert pitch(moving(hue=0.6), now, 96) > 1.5 * pitch(moving(), now, 96)
    assert pitch(moving(centre=(64.0, 20.0)), now, 96) > pitch(moving(), now, 96)


def test_the_same_seed_gives_the_same_clip():
    settings = ClipSettings(width=48, height=32, seconds=1.5)
    first, again = render_clip(7, settings), render_clip(7, settings)
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.wave, again.wave)
    assert not np.array_equal(render_clip(15, settings).frames, first.frames)


def test_the_files_are_the_same_whatever_the_processes(stored, tmp_path):
    simulate_clips(tmp_path / "again", **SMALL, workers=1)
    there = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file())
    assert there == sorted(p.relative_to(tmp_path / "again") for p in tmp_path.rglob("*") if p.is_file())
    assert all((stored / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in there)


def test_vggsounds_layout_in_other_codecs(tmp_path):
    simulate_clips(
        tmp_path / "clips", **SMALL | {"layout": "vggsound", "video": "mpeg4", "audio": "pcm"}, workers=1
    )
    recordings = vggsound(tmp_path / "clips", "test")
    assert len(recordings) == 4 and recordings[0].path.suffix == ".mkv"  # MP4 takes no PCM
    frames, wave, _ = decoded(recordings[0].path)
    assert len(frames) == 15 and len(wave) == 30000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 49}, "width must be even and at least 32 .*got 49"),
        ({"seconds": 1.0}, "seconds must be at least 1.2"),
        ({"clips": 3}, r"clips \(3\) must be at least 16"),
        ({"layout": "youtube"}, "layout must be one of kinetics, vggsound; got 'youtube'"),
        ({"video": "vp9"}, "video must be one of h264, mpeg4; got 'vp9'"),
    ],
)
def test_refuses(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        simulate_clips(tmp_path / "clips", **SMALL | options)
    assert not (tmp_path / "clips").exists()


def test_keeps_what_is_there(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        simulate_clips(tmp_path, **SMALL)
