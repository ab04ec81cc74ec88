import csv
import json
from dataclasses import replace
from itertools import combinations, groupby, pairwise, product

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmx_fast.data.transforms.schroeder import reverberation_time
from cmx_fast.simulate.commands import simulate_rooms
from cmx_fast.simulate.rooms.acoustics import impulse_response
from cmx_fast.simulate.rooms.catalogue import make_rooms
from cmx_fast.simulate.rooms.geometry import SURFACES, Room, predicted_decay_times
from cmx_fast.simulate.rooms.materials import MATERIALS
from cmx_fast.simulate.rooms.sentences import TEST_SENTENCES, TRAIN_SENTENCES, VAL_SENTENCES
from cmx_fast.simulate.rooms.textures import TEXTURES


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def rows(simulated):
    with open(simulated / "manifest.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def description(simulated):
    return json.loads((simulated / "rooms.json").read_text())["rooms"]


def test_layout(simulated, rows):
    assert list(rows[0]) == ["image", "air", "space", "indoor", "rt60", "split"]
    assert len(rows) == 3 * (3 + 1 + 2)
    assert [split for split, _ in groupby(row["split"] for row in rows)] == ["train", "val", "test"]
    for row in rows:
        identity = row["image"].removeprefix(f"{row['split']}_A/").removesuffix("_label.jpg")
        assert row["air"] == f"{row['split']}_B/{identity}_img.wav"
        assert identity.rsplit("_", 1)[0] == row["space"]
        with Image.open(simulated / row["image"]) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
        info = soundfile.info(simulated / row["air"])
        assert (info.samplerate, info.subtype, info.channels) == (22050, "PCM_16", 1)
    listed = {row[key] for row in rows for key in ("image", "air")}
    assert listed == {name for name in files_of(simulated) if name.split("/")[0][-2:] in ("_A", "_B")}
    assert {row["space"]: row["indoor"] for row in rows}.popitem()[1] == "0"


def test_speech(simulated):
    texts = {"train": TRAIN_SENTENCES, "val": VAL_SENTENCES, "test": TEST_SENTENCES}
    for split, sentences in texts.items():
        files = sorted((simulated / "speech" / split).glob("*.wav"))
        assert len(files) == len(sentences)
        seconds = [soundfile.info(file).duration for file in files]
        assert min(seconds) > 2
        assert max(seconds) < 6.5
        assert soundfile.info(files[0]).samplerate == 22050
    everything = [sentence for sentences in texts.values() for sentence in sentences]
    assert len(set(everything)) == len(everything)


def test_manifest_holds_the_measured_decay(simulated, rows):
    for row in rows:
        response, rate = soundfile.read(simulated / row["air"])
        assert float(row["rt60"]) == pytest.approx(reverberation_time(response, rate), abs=6e-4)


def test_same_seed_same_bytes_whatever_the_workers(simulated, tiny, tmp_path):
    simulate_rooms(out=tmp_path / "again", workers=2, **tiny)
    first, again = files_of(simulated), files_of(tmp_path / "again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_other_seed_other_rooms():
    assert make_rooms(3, seed=1) == make_rooms(3, seed=1)
    assert all(a.size != b.size for a, b in zip(make_rooms(3, 1), make_rooms(3, 2), strict=True))


def test_splits_share_spaces_but_no_place_and_no_view(description):
    for room in description:
        parts = [[p for p in room["pairs"] if p["split"] == split] for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [3, 1, 2]
        for key, get in {
            "source": lambda p: p["source"],
            "microphone": lambda p: p["microphone"],
            "camera": lambda p: p["camera"]["position"],
        }.items():
            pairs = [pair for two in combinations(parts, 2) for pair in product(*two)]
            gaps = [np.linalg.norm(np.subtract(get(a), get(b))) for a, b in pairs]
            assert min(gaps) > 0.2, (room["name"], key)


def test_everybody_stands_inside_and_off_the_furniture(description):
    for room, pair in ((r, p) for r in description for p in r["pairs"]):
        for place in (pair["source"], pair["microphone"], pair["camera"]["position"]):
            assert all(0 < x < limit for x, limit in zip(place, room["size"], strict=True))
            assert not any(
                all(lo < x < up for lo, x, up in zip(box["lower"], place, box["upper"], strict=True))
                for box in room["boxes"]
            )


def test_rooms_are_not_picked_to_sound_apart():
    """Each is drawn whatever the others are; the nearest in decay differ by less than can be heard (5 %)."""
    rooms = make_rooms(24, seed=0)
    assert rooms[:7] == make_rooms(7, seed=0)
    decays = sorted(float(predicted_decay_times(room)[2:4].mean()) for room in rooms if room.indoor)
    assert min(b / a for a, b in pairwise(decays)) < 1.05


def test_twenty_four_rooms():
    rooms = make_rooms(24, seed=0)
    assert sum(not room.indoor for room in rooms) == 4
    assert len({room.name for room in rooms}) == 24
    middle = sorted(float(predicted_decay_times(r)[2:4].mean()) for r in rooms if r.indoor)
    assert middle[0] < 0.4
    assert 1.5 < middle[-1] < 3.2
    assert all(room.surfaces["ceiling"] == "open" for room in rooms if not room.indoor)
    for room in rooms:
        used = {
            *room.surfaces.values(),
            *(p.material for p in room.patches),
            *(b.material for b in room.boxes),
        }
        assert used <= MATERIALS.keys()
        assert {MATERIALS[name].texture for name in used} <= TEXTURES.keys()
        assert all(
            lo >= -0.02 and up <= s + 0.02
            for b in room.boxes
            for lo, up, s in zip(b.lower, b.upper, room.size, strict=True)
        )


def test_hard_surfaces_and_size_make_long_decays():
    bare = Room("bare", "bare", True, (5.0, 4.0, 3.0), dict.fromkeys(SURFACES, "plaster"))
    soft = replace(bare, surfaces={**bare.surfaces, "floor": "deep carpet", "ceiling": "acoustic tile"})
    big = replace(bare, size=(15.0, 12.0, 9.0))
    places = ((1.2, 1.0, 1.5), (3.4, 2.7, 1.2))
    times = [
        reverberation_time(impulse_response(r, *places, 22050, seed=0), 22050) for r in (soft, bare, big)
    ]
    assert times[0] < 0.7 * times[1] < times[1] < 0.8 * times[2]
    eyring = float(predicted_decay_times(bare)[2:5].mean())
    assert times[1] == pytest.approx(eyring, rel=0.35)


def test_direct_sound_comes_first_and_seeds_repeat():
    room = make_rooms(1, seed=0)[0]
    places = ((0.6, 0.6, 1.2), (1.5, 1.2, 1.2))
    first, again = (impulse_response(room, *places, 22050, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() == pytest.approx(0.95)
    assert np.argmax(np.abs(first) > 0.1) == pytest.approx(0.002 * 22050, abs=30)


@pytest.fixture
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(8):
        tone = 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(16000) / 16000)
        soundfile.write(folder / f"{number}.flac", tone, 16000)
    return folder


def test_refuses_a_folder_in_use_and_replaces_it_when_told(tmp_path, recordings):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "precious.txt").write_text("mine")
    small = {
        "rooms": 1,
        "train_pairs": 1,
        "test_pairs": 1,
        "image_size": 32,
        "workers": 1,
        "speech": recordings,
    }
    with pytest.raises(ValueError, match=r"not empty.*--overwrite"):
        simulate_rooms(out=tmp_path / "set", **small)
    assert (tmp_path / "set" / "precious.txt").read_text() == "mine"
    simulate_rooms(out=tmp_path / "set", overwrite=True, **small)
    assert not (tmp_path / "set" / "precious.txt").exists()
    assert (tmp_path / "set" / "manifest.csv").exists()
    names = [
        {f.stem[4:] for f in (tmp_path / "set" / "speech" / s).iterdir()} for s in ("train", "val", "test")
    ]
    assert [len(part) for part in names] == [5, 1, 2]
    assert len(set.union(*names)) == 8
    info = soundfile.info(next((tmp_path / "set" / "speech" / "test").iterdir()))
    assert (info.samplerate, info.frames) == (22050, 22050)


def test_no_validation_part_when_told(tmp_path, recordings):
    simulate_rooms(
        out=tmp_path / "set",
        rooms=1,
        train_pairs=1,
        test_pairs=1,
        val_pairs=0,
        image_size=32,
        speech=recordings,
    )
    assert sorted(p.name for p in (tmp_path / "set" / "speech").iterdir()) == ["test", "train"]
    assert not (tmp_path / "set" / "val_A").exists()


def test_failure_leaves_nothing_behind(tmp_path, recordings):
    (recordings / "0.flac").write_bytes(b"no sound")
    with pytest.raises(soundfile.LibsndfileError):
        simulate_rooms(
            out=tmp_path / "set", rooms=1, train_pairs=1, test_pairs=1, image_size=32, speech=recordings
        )
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_speech_folder_without_speech(tmp_path):
    with pytest.raises(ValueError, match="speech: no folder"):
        simulate_rooms(out=tmp_path / "set", speech=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no WAV or FLAC files"):
        simulate_rooms(out=tmp_path / "set", speech=tmp_path / "empty")


@pytest.mark.parametrize("option", ["rooms", "train_pairs", "test_pairs", "workers"])
def test_refuses_zero(tmp_path, option):
    with pytest.raises(ValueError, match=rf"{option} \(0\)"):
        simulate_rooms(out=tmp_path / "set", **{option: 0})
