"""Tar shards and Hugging Face data sets as files and a table that the training commands read."""

from __future__ import annotations

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmx_fast.data.sets.labelled_pictures import class_folders
from cmx_fast.data.sets.lists import read_table
from cmx_fast.prepare.commands import prepare_huggingface, prepare_shards


def jpeg(value):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(stream, "JPEG")
    return stream.getvalue()


def wav(value):
    stream = io.BytesIO()
    soundfile.write(stream, np.full(100, value / 256), 8000, format="WAV")
    return stream.getvalue()


def write_shard(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def table(out):
    return {row["path"]: (row["label"], row["split"]) for row in read_table(out / "files.csv", ("path",))}


def test_shards(tmp_path, capsys):
    write_shard(
        tmp_path / "shards" / "train-000.tar",
        [
            ("0001.jpg", jpeg(10)), ("0001.cls", b"3\n"), ("0001.txt", b"a dog"),
            ("deep/0002.left.jpg", jpeg(20)), ("deep/0002.json", json.dumps({"label": "cat"}).encode()),
            ("0003.wav", wav(30)), ("0003.JPG", jpeg(30)),
        ],
    )  # fmt: skip
    write_shard(tmp_path / "shards" / "val" / "000.tar.gz", [("0004.jpg", jpeg(40))], "w:gz")
    write_shard(tmp_path / "shards" / "more.tar", [("0001.jpg", jpeg(50)), ("0005.jpg", jpeg(60))])
    prepare_shards(tmp_path / "shards", tmp_path / "out")
    assert table(tmp_path / "out") == {
        "train-000/0001.jpg": ("3", "train"),
        "train-000/deep/0002.left.jpg": ("cat", "train"),
        "train-000/0003.wav": ("", "train"),
        "train-000/0003.JPG": ("", "train"),
        "000/0004.jpg": ("", "val"),
        "more/0001.jpg": ("", ""),
        "more/0005.jpg": ("", ""),
    }
    assert (tmp_path / "out" / "more" / "0005.jpg").read_bytes() == jpeg(60)
    assert "files.csv: 7 files" in capsys.readouterr().err
    pictures = class_folders(tmp_path / "out" / "files.csv", "train", size=8)
    assert pictures.class_names == ["3", "cat", "unlabelled"] and "0001" in pictures.ids
    with pytest.raises(ValueError, match=r"files.csv is there already; choose another folder"):
        prepare_shards(tmp_path / "shards", tmp_path / "out")


def test_shards_that_break_off_or_lead_out_of_the_folder(tmp_path, capsys):
    shard = tmp_path / "shards" / "a.tar"
    write_shard(
        shard, [("../evil.jpg", jpeg(1)), ("1.jpg", jpeg(2)), ("2.json", b"{"), ("3.jpg", jpeg(3) * 20)]
    )
    shard.write_bytes(shard.read_bytes()[:-12000])
    prepare_shards(tmp_path / "shards", tmp_path / "out")
    assert list(table(tmp_path / "out")) == ["a/1.jpg"]
    said = capsys.readouterr().err
    assert "3 left out" in said
    for words in ("its name leads out of the folder", "its label can't be read", "a.tar: breaks off"):
        assert words in said
    assert not (tmp_path / "out" / "evil.jpg").exists() and not (tmp_path / "evil.jpg").exists()
    write_shard(tmp_path / "empty" / "a.tar", [("1.txt", b"words")])
    with pytest.raises(ValueError, match="no picture, sound or video to write"):
        prepare_shards(tmp_path / "empty", tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"shards: no .tar, .tar.gz, .tgz files in"):
        prepare_shards(tmp_path / "out", tmp_path / "nothing")


def test_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    content = {
        "train": {"image": [{"bytes": jpeg(v), "path": None} for v in (1, 2)], "label": [1, 0]},
        "validation": {"image": [{"bytes": jpeg(3), "path": "x.jpg"}, None], "label": [1, 1]},
    }
    both = {name: datasets.Dataset.from_dict(rows, features=features) for name, rows in content.items()}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    prepare_huggingface(tmp_path / "saved", tmp_path / "out")
    assert table(tmp_path / "out") == {
        "train/image/0000000.jpg": ("dog", "train"),
        "train/image/0000001.jpg": ("cat", "train"),
        "validation/image/0000000.jpg": ("dog", "val"),
    }
    assert (tmp_path / "out/train/image/0000001.jpg").read_bytes() == jpeg(2)

    (tmp_path / "hub" / "data").mkdir(parents=True)
    sounds = datasets.Dataset.from_dict(
        {"audio": [{"bytes": wav(9), "path": "a.wav"}], "sentence": ["hello"]}
    )
    sounds.cast_column("audio", datasets.Audio()).to_parquet(
        tmp_path / "hub" / "data" / "test-00000-of-00001.parquet"
    )
    prepare_huggingface(tmp_path / "hub", tmp_path / "sounds")
    assert table(tmp_path / "sounds") == {"test/audio/0000000.wav": ("", "test")}

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="has no column of pictures, sounds or videos; it has text"):
        prepare_huggingface(tmp_path / "text", tmp_path / "nothing")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'cmx-fast\[huggingface\]'"):
        prepare_huggingface(tmp_path, tmp_path / "out")
