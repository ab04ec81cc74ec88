"""Pictures with classes, in class folders and in CUB-200-2011's layout."""

from __future__ import annotations

import io

import pytest
import torch
from picture_sets import write_classes, write_cub
from PIL import Image

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.data.sets.labelled_pictures import class_folders, cub


def test_class_folders_are_numbered_over_all_splits(tmp_path):
    write_classes(tmp_path, {"train": 4, "test": 1})
    (tmp_path / "val" / "azure").mkdir(parents=True)
    train, test = (class_folders(tmp_path, split, size=24) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["azure", "blue", "red"]
    assert train.ids == ["blue/1.jpg", "blue/3.jpg", "red/0.jpg", "red/2.jpg"]
    assert [int(train.target(i)["label"]) for i in range(4)] == [1, 1, 2, 2] and not train.has_boxes
    assert train[2]["image"].shape == (3, 24, 24) and int(train[2]["label"]) == 2
    red, _, blue = train.load_image(2)[:, 10:14, 10:14].double().mean((1, 2))
    assert red > blue + 50


def test_cubs_splits_and_boxes(tmp_path):
    write_cub(tmp_path, train=4, test=2)
    train, test = (cub(tmp_path, split, size=24) for split in ("train", "test"))
    assert len(train) == 4 and len(test) == 2 and train.has_boxes
    assert train.class_names == ["001.Red_Bird", "002.Blue_Bird"]
    assert test.ids == ["001.Red_Bird/Bird_0005.jpg", "002.Blue_Bird/Bird_0006.jpg"]
    target = test.target(1)
    assert int(target["label"]) == 1
    left, top, right, bottom = (int(v) for v in (24 * target["box"]).round())
    inside = test.load_image(1)[:, top + 1 : bottom - 1, left + 1 : right - 1].double().mean((1, 2))
    assert inside[2] > inside[0] + 100
    torch.testing.assert_close(target["box"][2:] - target["box"][:2], torch.tensor([0.5, 0.5]))


def test_boxes_are_of_upright_pictures(tmp_path):
    write_cub(tmp_path, train=1, test=0)
    file = tmp_path / "images" / "001.Red_Bird" / "Bird_0001.jpg"
    turned = Image.new("RGB", (100, 50))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(file, exif=exif)
    (tmp_path / "bounding_boxes.txt").write_text("1 10 20 25 50\n")
    torch.testing.assert_close(
        cub(tmp_path, "train", size=24).target(0)["box"], torch.tensor([0.2, 0.2, 0.7, 0.7])
    )


def damage_pixels(file):
    stream = io.BytesIO()
    Image.open(file).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    start = content.index(b"IDAT") + 4
    content[start : start + 100] = bytes(100)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.unlink(), "missing"),
        (lambda file: file.write_bytes(b"text"), "not a picture"),
        (damage_pixels, "can't be decoded"),
    ],
)
def test_bad_files_are_named_or_skipped(tmp_path, spoil, reason):
    write_cub(tmp_path, train=3, test=1)
    spoil(tmp_path / "images" / "002.Blue_Bird" / "Bird_0002.jpg")
    with pytest.raises(BrokenFileError, match=rf"Bird_0002.jpg: .*{reason}"):
        cub(tmp_path, "train", size=24)
    data = cub(tmp_path, "train", size=24, skip_bad=True)
    assert len(data) == 2 and [path.name for path, _ in data.skipped] == ["Bird_0002.jpg"]


def test_refuses(tmp_path):
    write_cub(tmp_path / "cub", train=2, test=1)
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'; got 'val'"):
        cub(tmp_path / "cub", "val", size=24)
    (tmp_path / "cub" / "bounding_boxes.txt").write_text("1 60.0 27.0 325.0\n")
    with pytest.raises(
        ValueError, match=r"bounding_boxes.txt: '1 60.0 27.0 325.0' should hold a number and 4 more"
    ):
        cub(tmp_path / "cub", "train", size=24)
    (tmp_path / "cub" / "bounding_boxes.txt").write_text("1 60.0 27.0 325.0 304.0\n")
    with pytest.raises(ValueError, match="image 2 of images.txt has no fitting line"):
        cub(tmp_path / "cub", "train", size=24)
    (tmp_path / "val" / "dog").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no folder train; it should hold train/<class>"):
        class_folders(tmp_path, "train", size=24)


def test_class_folders_that_nobody_divided_and_a_table(tmp_path):
    for number in range(25):
        folder = tmp_path / ("cats" if number % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (10 * number, 0, 0)).save(folder / f"{number}.webp", lossless=True)
    parts = {split: class_folders(tmp_path, split, size=8) for split in ("train", "val", "test")}
    assert sorted(name for part in parts.values() for name in part.ids) == sorted(map(str, range(25)))
    train = parts["train"]
    assert train.class_names == ["cats", "dogs"]
    for index, name in enumerate(train.ids):
        assert train.target(index)["label"] == 1 - int(name) % 2
        assert train.load_image(index)[0].unique().tolist() == [10 * int(name)]
    (tmp_path / "list.csv").write_text("path,label,split\ncats/1.webp,a,train\ndogs/2.webp,b,test\n")
    train, test = (class_folders(tmp_path / "list.csv", split, size=8) for split in ("train", "test"))
    assert (train.ids, test.ids, test.class_names) == (["1"], ["2"], ["a", "b"])
