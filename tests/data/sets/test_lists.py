"""Lists as people save them: every row is read, or its line is named."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmx_fast.data.sets.atr import ATR, load_merge
from cmx_fast.data.sets.audio_sets import dcase2013, esc50
from cmx_fast.data.sets.image2reverb import Image2Reverb
from cmx_fast.data.sets.lists import printable, read_list, read_table
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.data.sets.selection import read_selection
from cmx_fast.data.sets.video_sets import hmdb51, kinetics, ucf101, vggsound

#: What a list goes through on its way from one program to another.
SAVED = {
    "as it is": lambda text: text.encode(),
    "with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "by Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "by Windows with a mark": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "by an old Mac": lambda text: text.replace("\n", "\r").encode(),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "in UTF-16, high byte first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "with blank lines": lambda text: ("\n\n" + text.replace("\n", "\n  \n") + "\n\t\n\n").encode(),
    "with spaces": lambda text: "".join(f"  {line} \t\n" for line in text.splitlines()).encode(),
    "without a last line's end": lambda text: text.rstrip("\n").encode(),
}
TABLES = SAVED | {
    "with tabs": lambda text: text.replace(",", "\t").encode(),
    "with semicolons": lambda text: text.replace(",", ";").encode(),
    "with spaces behind commas": lambda text: text.replace(",", ", ").encode(),
    "with blank rows": lambda text: (text + ",,\n,,,,\n").encode(),
    "in quotes": lambda text: "".join(
        ",".join(f'"{value}"' for value in line.split(",")) + "\n" for line in text.splitlines()
    ).encode(),
}
NAMES = ["plain", "with space", "a:b", "ümlaut", "percent%20", "hash#1"]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write_videos(root, save):
    """VGGSound's list and its videos, three to train on of each name."""
    rows = "".join(f"{name},{i},rain,{'test' if i == 2 else 'train'}\n" for name in NAMES for i in range(3))
    root.mkdir(exist_ok=True)
    (root / "vggsound.csv").write_bytes(save(rows))
    for name in NAMES:
        for i in range(3):
            touch(root / "video" / f"{name}_{i:06d}.mp4")


@pytest.mark.parametrize("how", TABLES)
def test_vggsound(tmp_path, how):
    write_videos(tmp_path, TABLES[how])
    recordings = vggsound(tmp_path, "train")
    assert [entry.name for entry in recordings] == [f"{name}_{i:06d}" for name in NAMES for i in range(2)]
    assert recordings.class_names == ["rain"] and not recordings.skipped


@pytest.mark.parametrize("how", TABLES)
def test_kinetics(tmp_path, how):
    rows = "".join(f"air drumming,{name},1,11\n" for name in NAMES)
    (tmp_path / "val.csv").write_bytes(TABLES[how]("label,youtube_id,time_start,time_end\n" + rows))
    for name in NAMES:
        touch(tmp_path / "val/air_drumming" / f"{name}_000001_000011.mp4")
    recordings = kinetics(tmp_path, "val")
    assert len(recordings) == len(NAMES) and not recordings.skipped


@pytest.mark.parametrize("how", TABLES)
def test_esc50(tmp_path, how):
    rows = "".join(f"{name}.wav,1,0,dog\n" for name in NAMES)
    table = tmp_path / "meta/esc50.csv"
    table.parent.mkdir()
    table.write_bytes(TABLES[how]("filename,fold,target,category\n" + rows))
    for name in NAMES:
        touch(tmp_path / "audio" / f"{name}.wav")
    recordings = esc50(tmp_path, "test")
    assert len(recordings) == len(NAMES) and recordings.class_names == ["dog"] and not recordings.skipped


@pytest.mark.parametrize("how", SAVED)
def test_ucf101_and_hmdb51(tmp_path, how):
    lists = tmp_path / "ucf/ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_bytes(SAVED[how]("1 Archery\n"))
    for name, end in (("trainlist01.txt", " 1"), ("testlist01.txt", "")):
        (lists / name).write_bytes(SAVED[how]("".join(f"Archery/{n}.avi{end}\n" for n in NAMES)))
    (tmp_path / "hmdb/splits").mkdir(parents=True)
    lines = "".join(f"{n}.avi 1\n" for n in NAMES)
    (tmp_path / "hmdb/splits/run_test_split1.txt").write_bytes(SAVED[how](lines))
    for name in NAMES:
        touch(tmp_path / "ucf/UCF-101/Archery" / f"{name}.avi")
        touch(tmp_path / "hmdb/videos/run" / f"{name}.avi")
    for recordings in (
        ucf101(tmp_path / "ucf", "train"),
        ucf101(tmp_path / "ucf", "test"),
        hmdb51(tmp_path / "hmdb", "train"),
    ):
        assert [entry.name for entry in recordings] == NAMES and not recordings.skipped


@pytest.mark.parametrize("how", SAVED)
def test_atr(tmp_path, how):
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (tmp_path / "humanparsing" / folder).mkdir(parents=True)
        for name in NAMES:
            Image.new("L", (8, 8)).save(tmp_path / "humanparsing" / folder / f"{name}.{suffix}")
    (tmp_path / "train_id.txt").write_bytes(SAVED[how]("".join(f"{name}\n" for name in NAMES)))
    assert ATR(tmp_path, "train", size=8).ids == NAMES


@pytest.mark.parametrize("how", TABLES)
def test_pairs_of_files(tmp_path, how):
    (tmp_path / "vggsound.csv").write_bytes(TABLES[how]("".join(f"{name},1,rain,train\n" for name in NAMES)))
    for folder in ("images", "audios"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{name}_000001.jpg")
        soundfile.write(tmp_path / "audios" / f"{name}_000001.wav", np.ones(99), 8000)
    assert len(open_scenes("pairs", tmp_path, "train")) == len(NAMES)


def write_rooms(root, save):
    for folder in ("train_A", "train_B", "speech/train"):
        (root / folder).mkdir(parents=True)
    decay = 0.5 * np.exp(-np.arange(8000) / 400)
    rows = "image,air,space,indoor,rt60,split\n"
    for name in NAMES:
        Image.new("L", (8, 8)).save(root / f"train_A/{name}.jpg")
        soundfile.write(root / f"train_B/{name}.wav", decay, 8000)
        rows += f"train_A/{name}.jpg,train_B/{name}.wav,{name},1,0.5,train\n"
    soundfile.write(root / "speech/train/0.wav", decay, 8000)
    (root / "manifest.csv").write_bytes(save(rows))


@pytest.mark.parametrize("how", TABLES)
def test_a_manifest_of_rooms(tmp_path, how):
    write_rooms(tmp_path, TABLES[how])
    data = Image2Reverb(tmp_path, "train", sentences_per_air=1, seconds=0.5)
    assert [pair.space for pair in data.pairs] == NAMES and not data.skipped


@pytest.mark.parametrize("how", SAVED)
def test_json_files(tmp_path, how):
    (tmp_path / "s.json").write_bytes(SAVED[how]('{\n"a": [1, 2]\n}\n'))
    assert read_selection(tmp_path / "s.json") == {"a": [1, 2]}
    (tmp_path / "m.json").write_bytes(SAVED[how](json.dumps({"all": list(range(18))}, indent=1)))
    assert load_merge(tmp_path / "m.json") == {"all": list(range(18))}


RAW = "caf\udce9"


def test_names_that_are_no_utf8(tmp_path):
    """They are found, read, and shown by their bytes."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v/vggsound.csv").write_bytes(b"caf\xe9,1,r\xe9ain,train\ngone\xe9,2,r\xe9ain,train\n")
    touch(tmp_path / "v/video" / f"{RAW}_000001.mp4")
    recordings = vggsound(tmp_path / "v", "train")
    assert [entry.name for entry in recordings] == ["caf\\xe9_000001"] and recordings.class_names == [
        "r\\xe9ain"
    ]
    assert os.fsencode(recordings[0].path.name) == b"caf\xe9_000001.mp4"
    left_out(recordings.skipped).encode()
    write_rooms(tmp_path / "r", str.encode)
    for folder, suffix in (("train_A", "jpg"), ("train_B", "wav")):
        shutil.move(tmp_path / "r" / folder / f"plain.{suffix}", tmp_path / "r" / folder / f"{RAW}.{suffix}")
    manifest = tmp_path / "r/manifest.csv"
    manifest.write_bytes(manifest.read_bytes().replace(b"plain", b"caf\xe9"))
    data = Image2Reverb(tmp_path / "r", "train", sentences_per_air=1, seconds=0.5, sample_rate=8000)
    assert len(data.pairs) == len(NAMES) and data[0]["image"].shape == (3, 224, 224)
    assert printable(RAW) == "caf\\xe9" and printable("café 😀") == "café 😀"


BROKEN = {
    "a row is short": ("a,1,rain,train\nb,2,train\n", r"vggsound.csv, line 2: has 3 values"),
    "a row is long": ("a,1,rain,train\nb,2,rain, hard,train\n", r"line 2: has 5 values.*in quotes"),
    "a quote is open": ('a,1,rain,train\n"b,2,rain,train\nc,3,rain,train\n', r"vggsound.csv, line \d: "),
    "two quotes are open": (
        'a,1,rain,train\n"b,2,rain,train\n"c",3,rain,train\n',
        r"vggsound.csv, line \d: ",
    ),
    "a value over two lines": (
        'a,1,"rain\nhard",train\n',
        r"vggsound.csv, line 2: .*goes on in the next line",
    ),
    "no number": ("a,one,rain,train\n", r"line 1: start is 'one', expected a whole number"),
    "a superscript": ("a,\u00b2,rain,train\n", r"line 1: start is"),
    "another split": (
        "a,1,rain,train\nb,2,rain,trian\n",
        r"line 2: split is 'trian', expected train or val or test",
    ),
    "a zero byte": ("a,1,rain,train\nb\0,2,rain,train\n", r"line 2: holds a zero byte"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_can_not_be_read_is_named_by_its_line(tmp_path, how):
    text, message = BROKEN[how]
    (tmp_path / "vggsound.csv").write_text(text)
    for name in "abc":
        touch(tmp_path / "video" / f"{name}_000001.mp4")
    with pytest.raises(ValueError, match=message):
        vggsound(tmp_path, "train")


def test_other_lists_name_what_is_wrong(tmp_path):
    (tmp_path / "val").mkdir()
    for text, message in (
        ("label,youtube_id,time_start\na,b,1\n", r"val.csv lacks the columns time_end; it has label"),
        ("", r"val.csv is empty; it should name the columns label"),
        ("label,youtube_id,time_start,time_end\na,b,1\n", r"val.csv, line 2: has 3 values"),
        ("label,youtube_id,time_start,time_end\na,b,1,x\n", r"line 2: time_end is 'x'"),
    ):
        (tmp_path / "val.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            kinetics(tmp_path, "val")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2\n")
    with pytest.raises(ValueError, match=r"classInd.txt: '2' must hold a name and a number"):
        ucf101(tmp_path, "train")
    (tmp_path / "splits").mkdir()
    for line in ("a.avi", "a.avi 7"):
        (tmp_path / "splits/run_test_split1.txt").write_text(line)
        with pytest.raises(ValueError, match=rf"run_test_split1.txt: '{line}' must"):
            hmdb51(tmp_path, "train")
    (tmp_path / "odd.txt").write_bytes(codecs.BOM_UTF16_LE + b"\x00\xd8x")
    with pytest.raises(ValueError, match=r"odd.txt begins as UTF-16, but is not"):
        read_list(tmp_path / "odd.txt")


def test_files_beside_the_layout_are_counted(tmp_path):
    for name in ("a.mp4", "b.MP4", "c.mpg", "notes.txt", ".hidden"):
        touch(tmp_path / "val/run" / name)
    recordings = kinetics(tmp_path, "val")
    assert [entry.name for entry in recordings] == ["a", "b"]
    assert [path.name for path, _ in recordings.skipped] == ["c.mpg", "notes.txt"]
    Image.new("L", (8, 8)).save(tmp_path / "val/run/d.png")
    assert {path.name for path, _ in open_scenes("pictures", tmp_path, "test").skipped} == {
        "a.mp4", "b.MP4", "c.mpg", "notes.txt",
    }  # fmt: skip
    for name in (*(f"bus{number:02}.wav" for number in range(1, 11)), "bus.wav", "bus02.flac"):
        touch(tmp_path / "scenes_stereo" / name)
    assert [path.name for path, _ in dcase2013(tmp_path, "train").skipped] == ["bus.wav", "bus02.flac"]


def test_rooms_count_what_lies_beside_the_layout(tmp_path):
    write_rooms(tmp_path, str.encode)
    (tmp_path / "manifest.csv").unlink()
    for folder, suffix, end in (("train_A", "jpg", "label"), ("train_B", "wav", "img")):
        shutil.move(tmp_path / folder / f"plain.{suffix}", tmp_path / folder / f"hall_1_{end}.{suffix}")
    touch(tmp_path / "train_A" / "hall_2_label.gif")
    touch(tmp_path / "speech/train/1.mid")
    data = Image2Reverb(tmp_path, "train", sentences_per_air=1, seconds=0.5)
    assert [pair.name for pair in data.pairs] == ["hall_1"]
    assert len(data.skipped) == 2 + 2 * (len(NAMES) - 1)


words = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff", exclude_categories=("Cs",)),
    min_size=1,
    max_size=12,
).filter(lambda word: word.strip(" \t"))


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(",;\t"),
)
def test_what_csv_writes_is_read(tmp_path_factory, rows, end, encoding, separator):
    """Whatever the names hold, a table comes back with as many rows, and a list with as many lines."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second"), *rows])
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    stripped = [tuple(word.strip(" \t") for word in row) for row in rows]
    assert [(row["first"], row["second"]) for row in read_table(path, ("first", "second"))] == stripped
    path.write_bytes(end.join(first for first, _ in rows).encode(encoding))
    assert read_list(path) == [first for first, _ in stripped]
