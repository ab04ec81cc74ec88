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
import video_files
from PIL import Image
from video_files import write_video

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.media.decode import read_wave
from cmx_fast.data.media.files import read_audio, read_picture
from cmx_fast.data.sets import scenes as scenes_module
from cmx_fast.data.sets.own_files import part, place_of
from cmx_fast.data.sets.scenes import (
    HELD_OUT,
    VEGAS_CLASSES,
    Scene,
    Scenes,
    has_validation,
    open_scenes,
    read_classes,
    share_of,
    validation_part,
)
from cmx_fast.data.sets.selection import key, read_selection, write_selection
from cmx_fast.simulate.clips.simulate import ClipSettings, render_clip
from cmx_fast.simulate.commands import simulate_clips
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


def test_classes_restrict_a_set_and_number_what_is_left(pairs, tmp_path):
    train = open_scenes("pairs", pairs, "train", ["rain", "a, comma"])
    assert train.class_names == ["rain", "a, comma"]
    assert [s.label for s in train.entries] == [0, 1, 0, 1]
    rain = open_scenes("pairs", pairs, "train", ["rain"])
    assert [s.name[10] for s in rain.entries] == ["0", "2"]
    assert {s.label for s in rain.entries} == {0}
    with pytest.raises(ValueError, match=r"classes: the data has no 'rian' \(did you mean 'rain'\?\)"):
        open_scenes("pairs", pairs, "train", ["rian", "a, comma"])
    file = tmp_path / "classes.txt"
    file.write_text("rain\n\na, comma\n")
    assert read_classes(file) == ["rain", "a, comma"]
    for text, message in (("rain\n", "names 1$"), ("rain\nrain\n", "names 2, rain twice")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"must name two classes or more.*{message}"):
            read_classes(file)
    with pytest.raises(ValueError, match="there is no"):
        read_classes(tmp_path / "none.txt")


def test_videos_of_other_classes_are_not_opened(clips, monkeypatch):
    probed = []
    real = scenes_module.probe
    monkeypatch.setattr(scenes_module, "probe", lambda path: probed.append(path) or real(path))
    whole = open_scenes("vggsound", clips, "train")
    names = whole.class_names[5:3:-1]
    probed.clear()
    some = open_scenes("vggsound", clips, "train", [name.replace(" ", "_") for name in names])
    assert 0 < len(some) < len(whole)
    assert len(probed) == len(some)
    by_name = {s.name: whole.class_names[s.label] for s in whole.entries}
    assert all(by_name[s.name] == names[s.label] for s in some.entries)


def test_vegas_and_pictures_of_some_classes(tmp_path):
    for of_class in VEGAS_CLASSES[:3]:
        for i in range(17):
            folder = tmp_path / of_class
            write_pair(folder / "img" / f"{i}.jpg", folder / "audios" / f"{i}.wav", seconds=0.02)
    some = open_scenes("vegas", tmp_path, "train", [VEGAS_CLASSES[2], VEGAS_CLASSES[0]])
    assert [s.label for s in some.entries] == [1] * 16 + [0] * 16
    whole = open_scenes("vegas", tmp_path, "train")
    assert {s.name for s in some.entries} == {s.name for s in whole.entries if s.label != 1}


def test_pairs_are_found_by_names_in_milliseconds(pairs):
    for i in range(6):
        stem = f"abcdefghij{i}_{i:06d}"
        for folder, suffix in (("images", ".jpg"), ("audios", ".wav")):
            file = pairs / folder / (stem + suffix)
            file.rename(file.with_stem(f"abcdefghij{i}_{1000 * i}_{1000 * (i + 10)}"))
    train = open_scenes("pairs", pairs, "train")
    assert [s.name for s in train.entries] == [f"abcdefghij{i}_{i:06d}" for i in range(4)]
    assert train.entries[1].picture.name == "abcdefghij1_1000_11000.jpg"


def test_pairs_without_a_list(tmp_path):
    names = [f"{i:011d}_{1000 * k}_{1000 * k + 10000}" for i in range(60) for k in (3, 40)]
    for name in names:
        write_pair(tmp_path / "images" / f"{name}.jpg", tmp_path / "audios" / f"{name}.wav", seconds=0.01)
    (tmp_path / "audios" / f"{names[0]}.wav").unlink()
    train, test = (open_scenes("pairs", tmp_path, split) for split in ("train", "test"))
    assert len(train) + len(test) == 119
    assert 3 <= len(test) <= 24
    assert not {s.name[:11] for s in train.entries} & {s.name[:11] for s in test.entries}
    assert train.class_names == ["unlabelled"]
    assert [reason for _, reason in train.skipped] == ["has no file of the same name"]
    with pytest.raises(ValueError, match="has no vggsound.csv, which would say what is of which class"):
        open_scenes("pairs", tmp_path, "train", ["rain", "dog"])
    with pytest.raises(ValueError, match="has no split 'val'"):
        open_scenes("pairs", tmp_path, "val")
    divided = tmp_path / "divided"
    for split, i in (("train", 0), ("train", 1), ("val", 2), ("test", 3)):
        folder = divided / split
        write_pair(folder / "images" / f"{i}.png", folder / "audios" / f"{i}.wav", seconds=0.01)
    assert has_validation("pairs", divided)
    assert not has_validation("pairs", tmp_path)
    assert [[s.name for s in open_scenes("pairs", divided, split).entries] for split in ("train", "val", "test")] == [
        ["0", "1"], ["2"], ["3"],
    ]  # fmt: skip


def test_a_folder_of_videos_has_three_parts(clips):
    videos = {file.stem for file in (clips / "video").iterdir()}
    parts = {}
    for split in ("train", "val", "test"):
        names = {name for name in videos if part(name) == split}
        if names:
            parts[split] = {s.name for s in open_scenes("folder", clips / "video", split).entries}
            assert parts[split] == names
    assert len(parts) > 1
    assert has_validation("folder", clips / "video")


def test_a_lists_own_validation_part(pairs):
    assert not has_validation("pairs", pairs)
    table = pairs / "vggsound.csv"
    table.write_text(table.read_text().replace("train", "val", 1))
    assert has_validation("pairs", pairs)
    assert [s.name[10] for s in open_scenes("pairs", pairs, "val").entries] == ["0"]
    assert len(open_scenes("pairs", pairs, "train")) == 3


def test_a_share_is_held_out_by_video(tmp_path):
    entries = [Scene(f"{i:011d}_{start:06d}", 0, tmp_path, None) for i in range(200) for start in (1, 30)]
    train, val = validation_part(Scenes(entries, ["a", "b"]), 0.2)
    assert len(train) + len(val) == 400
    assert 50 < len(val) < 110
    assert not {s.name[:11] for s in train.entries} & {s.name[:11] for s in val.entries}
    assert validation_part(Scenes(entries[::-1], ["a", "b"]), 0.2)[1].entries == val.entries[::-1]
    # Pairs that are held out without a list are no part of it.
    assert all(HELD_OUT <= share_of(s.name) < HELD_OUT + 0.2 for s in val.entries)
    with pytest.raises(ValueError, match=r"validation = 0.2 of 1 scenes leaves"):
        validation_part(Scenes(entries[:1], ["a", "b"]), 0.2)


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
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="has no folder train; it should hold train/<class>"):
        open_scenes("pictures", tmp_path, "train")


def test_pictures_that_nobody_divided(tmp_path):
    """All are trained on but the tenth that is held out: no third part lies idle."""
    names = [f"picture{number}" for number in range(30)]
    assert {part(name) for name in names} == {"train", "val", "test"}
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.webp")
    train, held_out = (
        {s.name for s in open_scenes("pictures", tmp_path, split).entries} for split in ("train", "test")
    )
    assert held_out == {name for name in names if place_of(name) >= 0.9}
    assert 0 < len(held_out) < 10 and train == set(names) - held_out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "imagenet",
            "dataset must be one of kinetics, vggsound, folder, vegas, pairs, pictures; got 'imagenet'",
        ),
        ("pairs", "there is no .*vggsound.csv"),
        ("vegas", "has no class folder of VEGAS"),
        ("pictures", "none of its 0 files .* is in the part 'train'"),
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
    message = "; the selection matches 1 of 2, the others have evenly spaced frames"
    assert selected(chosen) == message
    assert selected(data) == ""
    check_selection("s.json", chosen.selection, data, chosen)
    with pytest.raises(ValueError, match=r"s.json names none of .* with .x., .*.abcdefghijk_0_10000."):
        check_selection("s.json", {"x": [1]}, data)


def test_frames_are_stretched_or_cropped(tmp_path, pairs):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    for file in (pairs / "images").iterdir():
        Image.fromarray(image).save(file, quality=95)
    scenes = open_scenes("pairs", pairs, "train")
    (((_, cropped),), ((_, whole),)) = (
        list(SceneData(scenes, size=20, stretch=stretch, workers=0).pictures([torch.tensor([0])]))
        for stretch in (False, True)
    )
    assert whole.shape == cropped.shape == (1, 3, 20, 20)
    assert cropped.min() > 200
    assert whole[..., :4].max() < 50
    assert whole[..., 7:13].min() > 200
    (tmp_path / "videos" / "video").mkdir(parents=True)
    write_video(tmp_path / "videos" / "video" / "abcdefghijk_000000.mp4")
    (tmp_path / "videos" / "vggsound.csv").write_text("abcdefghijk,0,a,train\n")
    scenes = open_scenes("vggsound", tmp_path / "videos", "train")
    frames = [
        SceneData(scenes, size=48, stretch=stretch, workers=0).read_pictures(0) for stretch in (False, True)
    ]
    assert frames[0].shape == frames[1].shape == (1, 3, 48, 48)
    assert frames[1].dtype == torch.uint8
    assert not frames[0].equal(frames[1])


def test_sounds_around_their_moments(tmp_path, pairs):
    rate = 16000
    video = tmp_path / "videos" / "video" / "abcdefghijk_000000.mp4"
    video.parent.mkdir(parents=True)
    write_video(video)
    (tmp_path / "videos" / "vggsound.csv").write_text("abcdefghijk,0,a,train\n")
    scenes = open_scenes("vggsound", tmp_path / "videos", "train")
    media = scenes.entries[0].media
    whole = read_wave(video, media.start, media.seconds, rate)
    for cache in (False, True):
        options = {"size": 48, "moments": 4, "seconds": 1.0, "heard": 0.5, "workers": 0, "cache": cache}
        data = SceneData(scenes, around=True, **options)
        assert data.sounds_each == 4
        ((index, waves),) = data.sounds([torch.tensor([3, 0, 1])])
        assert index.tolist() == [3, 0, 1]
        # Two seconds: the moments are 0.25, 0.75, ...; the last reaches to the end, the first from the beginning.
        for wave, start in zip(waves, (1.5, 0.0, 0.5), strict=True):
            expected = whole[round(start * rate) : round((start + 0.5) * rate)]
            torch.testing.assert_close(wave[: len(expected)], expected.clamp(-1, 1), atol=2e-2, rtol=0)
            assert wave[8000:].equal(wave[:8000])
        first = SceneData(scenes, **options)
        assert first.sounds_each == 1
        assert next(iter(first.sounds([torch.tensor([0])])))[1][0].equal(waves[1])
    step = np.concatenate([np.full(4000, 0.1), np.full(2000, 0.5), np.full(4000, 0.1)])
    for file in (pairs / "audios").iterdir():
        soundfile.write(file, step, rate)
    data = SceneData(open_scenes("pairs", pairs, "train"), seconds=1.0, heard=0.125, around=True, workers=0)
    ((_, waves),) = data.sounds([torch.tensor([1])])
    torch.testing.assert_close(waves[0], torch.full((rate,), 0.5), atol=1e-3, rtol=0)  # the middle


def test_a_silent_moment_of_a_recording_that_sounds_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "video").mkdir()
    tone = video_files.tone
    for name, sounding in (("abcdefghij0", 16000), ("abcdefghij1", 0)):
        monkeypatch.setattr(
            video_files,
            "tone",
            lambda *a, n=sounding: np.where(np.arange(32000) < n, tone(*a), 0).astype("f4"),
        )
        write_video(tmp_path / "video" / f"{name}_000000.mkv", audio="pcm_s16le")
    (tmp_path / "vggsound.csv").write_text("abcdefghij0,0,a,train\nabcdefghij1,0,b,train\n")
    data = SceneData(
        open_scenes("vggsound", tmp_path, "train"),
        size=16, moments=2, seconds=0.4, around=True, workers=0,
    )  # fmt: skip
    numbers = [torch.tensor([number]) for number in range(4)]
    heard = {int(index): float(wave.abs().max()) for index, wave in data.sounds(numbers)}
    assert set(heard) == {0, 1}
    assert heard[0] > 0.2
    assert heard[1] == 0
    assert [reason for _, reason in data.skipped] == ["is silent"]


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
