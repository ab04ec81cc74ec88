"""Scenes in the layouts of the real sets, and their pictures and sounds as batches."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="needs the media extra")
pytest.importorskip("av", reason="needs the media extra")

import soundfile
from PIL import Image
from video_files import write_video

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.data.sets.scenes import VEGAS_CLASSES, open_scenes
from cmx_fast.data.sets.selection import key, read_selection, write_selection
from cmx_fast.simulate.clips.simulate import ClipSettings, render_clip, simulate_clips
from cmx_fast.systems.sound2scene.sound_features import check_selection, selected


def write_pair(picture, sound, level=100, *, rate=16000, channels=1, seconds=0.5):
    picture.parent.mkdir(parents=True, exist_ok=True)
    sound.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(picture)
    wave = 0.3 * np.sin(np.arange(round(rate * seconds)) * 2 * np.pi * 440 / rate)
    soundfile.write(sound, np.repeat(wave[:, None], channels, 1), rate)


@pytest.fixture
def pairs(tmp_path):
    """Six scenes of two classes, two of them held out."""
    names = [f"abcdefghij{i}" for i in range(6)]
    with (tmp_path / "vggsound.csv").open("w", newline="") as file:
        for i, name in enumerate(names):
            csv.writer(file).writerow((name, i, ("rain", "a, comma")[i % 2], "test" if i > 3 else "train"))
    for i, name in enumerate(names):
        stem = f"{name}_{i:06d}"
        write_pair(tmp_path / "images" / f"{stem}.jpg", tmp_path / "audios" / f"{stem}.wav", 30 * i)
    return tmp_path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated") / "clips"
    simulate_clips(root, clips=16, width=48, height=32, seconds=1.25, fps=12, layout="vggsound")
    return root


def test_pairs_of_files(pairs):
    train, test = open_scenes("pairs", pairs, "train"), open_scenes("pairs", pairs, "test")
    assert [s.name for s in train.entries] == [f"abcdefghij{i}_{i:06d}" for i in range(4)]
    assert len(test) == 2 and train.class_names == ["a, comma", "rain"]
    assert [s.label for s in train.entries] == [1, 0, 1, 0]


def test_what_is_broken_is_named(pairs):
    (pairs / "images" / "abcdefghij0_000000.jpg").write_bytes(b"nothing")
    (pairs / "audios" / "abcdefghij1_000001.wav").unlink()
    scenes = open_scenes("pairs", pairs, "train")
    assert [s.name[10] for s in scenes.entries] == ["2", "3"]
    assert [(path.name, reason) for path, reason in scenes.skipped] == [
        ("abcdefghij0_000000.jpg", "not a picture"), ("abcdefghij1_000001.wav", "missing"),
    ]  # fmt: skip


def test_vegas_is_split_the_same_every_time(tmp_path):
    for of_class in VEGAS_CLASSES[:2]:
        for i in range(34):
            folder = tmp_path / of_class
            write_pair(folder / "img" / f"{i}.jpg", folder / "audios" / f"{i}.wav", seconds=0.02)
    train, test = open_scenes("vegas", tmp_path, "train"), open_scenes("vegas", tmp_path, "test")
    assert (len(train), len(test)) == (64, 4) and train.class_names == list(VEGAS_CLASSES[:2])
    assert not {s.name for s in train.entries} & {s.name for s in test.entries}
    assert open_scenes("vegas", tmp_path, "test") == test


def test_folders_of_pictures_alone(tmp_path):
    for split, of_class in (("train", "cat"), ("train", "dog"), ("val", "ant"), ("val", "dog")):
        folder = tmp_path / split / of_class
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.JPEG")
        (folder / "notes.txt").write_text("")
    train = open_scenes("pictures", tmp_path, "train")
    assert [s.name for s in train.entries] == ["cat/a.JPEG", "dog/a.JPEG"]
    test = open_scenes("pictures", tmp_path, "test")
    assert train.class_names == test.class_names == ["ant", "cat", "dog"]
    assert [s.label for s in train.entries] == [1, 2] and [s.label for s in test.entries] == [0, 2]
    assert not list(SceneData(train, workers=0).sounds([torch.tensor([0])]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet", "dataset must be one of kinetics, vggsound, vegas, pairs, pictures; got 'imagenet'"),
        ("pairs", "there is no .*vggsound.csv"),
        ("vegas", "has no class folder of VEGAS"),
        ("pictures", "has no folder train"),
    ],
)
def test_folders_without_their_lists(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        open_scenes(name, tmp_path, "train")


def test_pictures_and_sounds_of_files(pairs):
    data = SceneData(open_scenes("pairs", pairs, "train"), size=16, seconds=1.0, workers=0)
    ((index, pictures),) = data.pictures([torch.tensor([2, 0])])
    assert index.tolist() == [2, 0] and pictures.shape == (2, 3, 16, 16) and pictures.dtype == torch.uint8
    assert pictures[0].float().mean() == pytest.approx(60, abs=2)
    ((_, waves),) = data.sounds([torch.tensor([1])])
    assert waves.shape == (1, 16000) and waves[0, :8000].equal(waves[0, 8000:])  # half a second, repeated
    heard = SceneData(open_scenes("pairs", pairs, "train"), seconds=1.0, heard=0.25, workers=0)
    wave = next(iter(heard.sounds([torch.tensor([1])])))[1][0]
    assert wave[:4000].equal(waves[0, :4000]) and wave[4000:8000].equal(wave[:4000])


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2)])
def test_sound_of_any_rate_is_mono_at_16_khz(tmp_path, rate, channels):
    write_pair(tmp_path / "p.jpg", tmp_path / "s.wav", rate=rate, channels=channels)
    wave = read_audio(tmp_path / "s.wav", 16000, 16000, mix=True)
    assert len(wave) == pytest.approx(8000, abs=2)
    spectrum = torch.fft.rfft(wave[:8000] * torch.hann_window(8000)).abs()
    assert int(spectrum.argmax()) * 2 == pytest.approx(440, abs=4)


def test_the_mean_of_channels_not_the_first(tmp_path):
    soundfile.write(tmp_path / "s.wav", np.array([[0.5, -0.25]] * 100), 16000)
    assert read_audio(tmp_path / "s.wav", 16000, 100, mix=True)[0] == pytest.approx(0.125, abs=1e-4)
    assert read_audio(tmp_path / "s.wav", 16000, 100)[0] == pytest.approx(0.5, abs=1e-4)


def test_pictures_are_not_cropped_beyond_the_square(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    Image.fromarray(image).save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png", 20, shorter=20).min() == 255


def test_moments_of_videos(tmp_path):
    for i in range(2):
        (tmp_path / "video").mkdir(exist_ok=True)
        write_video(tmp_path / "video" / f"abcdefghijk_{i:06d}.mp4")
    (tmp_path / "vggsound.csv").write_text("abcdefghijk,0,a,train\nabcdefghijk,1,b,train\n")
    scenes = open_scenes("vggsound", tmp_path, "train")
    data = SceneData(scenes, size=48, moments=3, seconds=1, workers=0)
    pictures = torch.cat([p for _, p in data.pictures([torch.arange(6)])])
    # 60 frames of two seconds: the middles of three thirds. The square is the middle of 64 x 48.
    assert pictures.shape == (6, 3, 48, 48)
    assert data.times(0) == pytest.approx([1 / 3, 1, 5 / 3], abs=0.02)
    chosen = SceneData(
        scenes, size=48, moments=2, seconds=1, workers=0, selection={"abcdefghijk_1000_11000": [7, 3, 1]}
    )
    assert chosen.times(1) == pytest.approx([0.7, 0.3], abs=0.02)
    assert chosen.times(0) == pytest.approx([0.5, 1.5], abs=0.02)
    assert chosen.selected == 1 and data.selected == 0
    assert selected(chosen) == "; the selection names 1, of 1 evenly spaced frames" and selected(data) == ""
    check_selection("s.json", chosen.selection, data, chosen)
    with pytest.raises(ValueError, match=r"s.json names none of .* with .x., .*.abcdefghijk_0_10000."):
        check_selection("s.json", {"x": [1]}, data)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing(clips, workers):
    scenes = open_scenes("vggsound", clips, "train")
    plain = SceneData(scenes, size=32, moments=2, seconds=1, workers=0)
    kept = SceneData(scenes, size=32, moments=2, seconds=1, workers=workers, cache=True)
    wanted = [torch.tensor([0, 5]), torch.tensor([7])]
    for load in ("pictures", "sounds"):
        for _ in range(2):
            one, other = (list(getattr(data, load)(wanted)) for data in (plain, kept))
            assert [i.tolist() for i, _ in other] == [[0, 5], [7]]
            assert all(a.equal(b) for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("cache", [False, True])
def test_what_breaks_later_is_left_out_of_its_batch(pairs, cache):
    scenes = open_scenes("pairs", pairs, "train")
    whole = (pairs / "images" / "abcdefghij2_000002.jpg").read_bytes()
    (pairs / "images" / "abcdefghij2_000002.jpg").write_bytes(
        whole[:200] + bytes(len(whole) - 202) + whole[-2:]
    )
    soundfile.write(pairs / "audios" / "abcdefghij3_000003.wav", np.zeros(1000), 16000)
    data = SceneData(scenes, size=16, seconds=1.0, workers=0, cache=cache)
    batches = [torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([1, 3])]
    assert [i.tolist() for i, _ in data.sounds(batches)] == [[0, 2], [2], [1]]
    assert [i.tolist() for i, _ in data.pictures(batches)] == [[0], [1]]
    assert data.usable().tolist() == [0, 1]
    assert [(p.name, r.split(" (")[0]) for p, r in data.skipped] == [
        ("abcdefghij3_000003.wav", "is silent"), ("abcdefghij2_000002.jpg", "can't be decoded"),
    ]  # fmt: skip


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_others_take_the_places_of_what_breaks(pairs, cache, workers):
    for i in (0, 1):
        soundfile.write(pairs / "audios" / f"abcdefghij{i}_{i:06d}.wav", np.zeros(1000), 16000)
    scenes = open_scenes("pairs", pairs, "train")
    data = SceneData(scenes, size=16, seconds=1.0, workers=workers, cache=cache)
    for _ in range(2):
        batches = list(
            data.sounds([torch.tensor([2, 0]), torch.tensor([0, 1]), torch.tensor([3])], lambda _: [1, 3, 2])
        )
        assert [index.tolist() for index, _ in batches] == [[2, 3], [3, 2], [3]]
        assert all(len(waves) == len(index) for index, waves in batches)
    (short,) = data.sounds([torch.tensor([2, 0])], lambda _: [])
    assert short[0].tolist() == [2]
    assert not list(data.sounds([torch.tensor([0])], lambda _: [1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"seconds": 1.0, "heard": 2.0}, "heard = 2.0 in"),
        ({"selection": {"abcdefghij0_0_10000": [1]}}, "selection must be None: .*jpg is a single picture"),
        ({"moments": 2}, "moments must be 1: .*jpg is a single picture; got 2"),
    ],
)
def test_scene_data_refuses(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        SceneData(open_scenes("pairs", pairs, "train"), **options)


def test_selections_are_called_as_the_authors_do(tmp_path):
    assert key("abcdefghijk_000030") == "abcdefghijk_30000_40000"
    assert key("abcdefghijk_000030_000033") == "abcdefghijk_30000_33000"
    assert key("rain/12") == "rain/12"
    write_selection(tmp_path / "new" / "s.json", {"a": [3, 1]})
    assert read_selection(tmp_path / "new" / "s.json") == {"a": [3, 1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold an object of lists of frame numbers; got a list"),
        (json.dumps({"a": []}), r"'a' must be a list of frame numbers, 0 or more; got \[\]"),
        (json.dumps({"a": [1.5]}), "'a' must be a list"),
        (json.dumps({"a": [True]}), "'a' must be a list"),
        (None, "there is no selection"),
    ],
)
def test_bad_selections(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_selection(tmp_path / "s.json")


def test_simulated_splits_have_places_of_their_own():
    settings = ClipSettings(width=64, height=64, seconds=1.25, fps=12, distractors=0, largest=0.36, places=1)
    first, other_class = (render_clip(i, settings) for i in (0, 1))
    held_out = render_clip(0, settings, "test")
    corner = (slice(None), slice(0, 4), slice(0, 4))
    same, differ = (
        np.abs(first.frames[corner].astype(float).mean(0) - b.frames[corner].mean(0)).mean()
        for b in (other_class, held_out)
    )
    assert first.label == held_out.label != other_class.label and same < 3 < differ
    assert max(render_clip(i, settings).track[:, 2].max() for i in range(8)) > 0.25 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": -1}, "places must be at least 0, got -1"),
        ({"largest": 0.5}, r"largest must be in \[0.05, 0.38\]"),
    ],
)
def test_simulated_clips_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        ClipSettings(**options)
