"""``cmx prepare image2reverb`` on a small copy of the published layout."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.sets.lists import read_table
from cmx_fast.prepare.commands import prepare_image2reverb
from cmx_fast.prepare.image2reverb import PooledPair, pool, redivide

RATE = 8000


def write_response(path, rt60, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    time = np.arange(round((rt60 + 0.2) * RATE)) / RATE
    decay = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    soundfile.write(path, 0.1 * (decay + noise * rng.standard_normal(len(time))), RATE, subtype="PCM_16")


def write_picture(path, level):
    Image.fromarray(np.full((20, 24, 3), level, np.uint8)).save(path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two spaces of 8 and 4 pairs over three parts; each space has two responses and pictures that repeat."""
    root = tmp_path_factory.mktemp("image2reverb")
    for part in ("train", "val", "test"):
        (root / f"{part}_A").mkdir()
        (root / f"{part}_B").mkdir()
    for space, count in ((0, 8), (1, 4)):
        for pair in range(count):
            part = ("train", "train", "val", "test")[pair % 4]
            write_picture(root / f"{part}_A" / f"{space}_{pair}_label.jpg", 60 * space + 10 * (pair // 2))
            write_response(root / f"{part}_B" / f"{space}_{pair}_img.wav", 0.2 + 0.2 * space, seed=pair % 2)
    return root


@pytest.fixture(scope="module")
def wsj0(tmp_path_factory):
    """Three speakers in WSJ0's folders: SPHERE of the near and the far microphone."""
    root = tmp_path_factory.mktemp("wsj0")
    rng = np.random.default_rng(1)
    for speaker in ("011", "01a", "02b"):
        folder = root / "si_tr_s" / speaker
        folder.mkdir(parents=True)
        for number in range(2):
            for microphone in ("wv1", "wv2"):
                file = folder / f"{speaker}c020{number}.{microphone}"
                soundfile.write(file, 0.1 * rng.standard_normal(RATE), RATE, format="NIST", subtype="PCM_16")
    return root


def prepare(published, wsj0, out, **options):
    prepare_image2reverb(published, wsj0, out, **{"speaker": "wsj0", "test_share": 0.25, **options})
    return read_table(out / "manifest.csv", ()), read_table(out / "speech.csv", ())


def test_pools_all_parts_and_divides_within_spaces(published, wsj0, tmp_path):
    rows, _ = prepare(published, wsj0, tmp_path / "set", val_share=0.25)
    for space, of_each in (("0", 2), ("1", 1)):
        parts = [row["split"] for row in rows if row["space"] == space]
        assert parts.count("test") == parts.count("val") == of_each
    again, _ = prepare(published, wsj0, tmp_path / "again", val_share=0.25)
    other, _ = prepare(published, wsj0, tmp_path / "other", val_share=0.25, seed=1)
    assert again == rows
    assert other != rows
    assert all(float(row["rt60"]) == pytest.approx(0.2 + 0.2 * int(row["space"]), rel=0.15) for row in rows)


def test_every_space_keeps_a_pair_to_train_on_and_the_total_is_the_share():
    def pairs(space, count):
        return [PooledPair(space, space, space, 0.0, "", "") for _ in range(count)]

    spaces = [pair for i in range(40) for pair in pairs(f"s{i}", 1 + i % 5)]
    parts = redivide(spaces, 0.0, 0.3, seed=0)
    assert parts.count("test") == pytest.approx(0.3 * len(spaces), abs=1)
    assert {p.space for p, part in zip(spaces, parts) if part == "train"} == {p.space for p in spaces}


def test_overlap_is_counted_by_content(published, wsj0, tmp_path):
    rows, _ = prepare(published, wsj0, tmp_path)
    summary = json.loads((tmp_path / "prepared.json").read_text())
    assert (summary["pictures"], summary["responses"]) == (6, 4)

    def content(path):
        with open(path, "rb") as file:
            return file.read()

    train = [row for row in rows if row["split"] == "train"]
    for column, name in (("image", "picture in training"), ("air", "response in training")):
        seen = {content(row[column]) for row in train}
        shared = sum(content(row[column]) in seen for row in rows if row["split"] == "test")
        assert summary["overlap"]["test"][name] == shared
    assert summary["overlap"]["test"]["pairs"] == 3


def test_indoor_flags_come_from_a_table(published, wsj0, tmp_path, capsys):
    table = tmp_path / "indoor.csv"
    table.write_text("space,indoor\n0,1\n")
    rows, _ = prepare(published, wsj0, tmp_path / "set", indoor=table)
    assert {(row["space"], row["indoor"]) for row in rows} == {("0", "1"), ("1", "")}
    assert "1 of 2 spaces are neither indoors nor outdoors" in capsys.readouterr().err
    table.write_text("space,indoor\n0,inside\n")
    with pytest.raises(ValueError, match="line 2: indoor is 'inside'"):
        prepare(published, wsj0, tmp_path / "other", indoor=table)


def test_speakers_are_held_out_and_the_far_microphone_is_left_out(published, wsj0, tmp_path, capsys):
    _, spoken = prepare(published, wsj0, tmp_path)
    assert len(spoken) == 6
    parts = {row["speaker"]: set() for row in spoken}
    for row in spoken:
        assert row["file"].endswith(".wv1")
        parts[row["speaker"]].add(row["split"])
    assert set(parts) == {"011", "01a", "02b"}
    assert sorted(map(sorted, parts.values())) == [["test"], ["train"], ["train"]]
    assert "6 left out" in capsys.readouterr().err


def test_librispeech_names_its_speakers(published, tmp_path):
    for speaker, chapter in ((19, 198), (19, 227), (26, 495)):
        folder = tmp_path / "LibriSpeech" / "train-clean-100" / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        soundfile.write(folder / f"{speaker}-{chapter}-0000.flac", np.full(RATE, 0.1), RATE)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("WORDS")
    _, spoken = prepare(published, tmp_path / "LibriSpeech", tmp_path / "set", speaker="librispeech")
    assert sorted(row["speaker"] for row in spoken) == ["19", "19", "26"]


def test_what_is_prepared_can_be_read(published, wsj0, tmp_path):
    prepare(published, wsj0, tmp_path, val_share=0.25)
    options = {"seconds": 0.5, "sample_rate": RATE, "image_size": 16, "sentences_per_air": 1}
    train = Image2Reverb(tmp_path, "train", **options)
    for part in ("val", "test"):
        item = Image2Reverb(tmp_path, part, spaces=train.spaces, **options)[0]
        assert item["image"].shape == (3, 16, 16)
        assert item["wave"].abs().max() == pytest.approx(1)


def test_broken_files_are_left_out_and_noise_leaves_rt60_unknown(published, wsj0, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(published, root)
    (root / "train_A" / "0_0_label.jpg").write_bytes(b"no picture")
    (root / "train_B" / "0_1_img.wav").unlink()
    write_response(root / "train_B" / "0_4_img.wav", 0.2, noise=1.0)
    pairs, skipped = pool(root)
    assert len(pairs) == 10
    assert {path.name for path, _ in skipped} == {"0_0_label.jpg", "0_1_label.jpg"}
    assert [pair.air.name for pair in pairs if math.isnan(pair.rt60)] == ["0_4_img.wav"]
    prepare(root, wsj0, tmp_path / "set")
    assert json.loads((tmp_path / "set" / "prepared.json").read_text())["responses of unknown RT60"] == 1
    assert "0_0_label.jpg: not a picture" in capsys.readouterr().err


def test_refuses(published, wsj0, tmp_path):
    with pytest.raises(ValueError, match="none of train_A, val_A, test_A"):
        prepare(wsj0, wsj0, tmp_path / "a")
    with pytest.raises(ValueError, match=r"test_share \(1\) above 0, and both below 1 together"):
        prepare(published, wsj0, tmp_path / "a", test_share=1)
    with pytest.raises(ValueError, match="speech: no folder"):
        prepare(published, tmp_path / "nowhere", tmp_path / "a")
    with pytest.raises(ValueError, match="regular expression with a group"):
        prepare(published, wsj0, tmp_path / "a", speaker="speaker")
    with pytest.raises(ValueError, match="--speaker librispeech finds nobody in its name"):
        prepare(published, wsj0, tmp_path / "a", speaker="librispeech")
    prepare(published, wsj0, tmp_path / "b")
    with pytest.raises(ValueError, match="is there already; choose another folder or pass --overwrite"):
        prepare(published, wsj0, tmp_path / "b")
    prepare(published, wsj0, tmp_path / "b", overwrite=True)
