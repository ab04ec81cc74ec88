import json
import sys

import numpy as np
import pytest
import torch
from atr_files import write_pictures
from PIL import Image

from cmx_fast.data.media import decode
from cmx_fast.data.sets.atr import ATR, load_merge
from cmx_fast.systems.c2l.data import Pictures


@pytest.fixture
def root(tmp_path):
    return write_pictures(tmp_path / "atr", {"train": 4, "val": 1, "test": 2}, size=40)


def test_pictures_and_merged_masks(root):
    data = ATR(root, "train", size=40)
    assert len(data) == 4 and data.class_names == ["background", "upper body", "lower body"]
    item = data[1]
    assert item["image"].shape == (3, 40, 40) and item["image"].dtype == torch.uint8
    with Image.open(root / "humanparsing" / "SegmentationClassAug" / f"{item['id']}.png") as mask:
        raw = torch.from_numpy(np.array(mask))
    for label, merged in ((0, 0), (4, 1), (6, 2)):
        assert (item["mask"][raw == label] == merged).all()
    assert set(ATR(root, "train", size=20).load_mask(0).unique().tolist()) == {0, 1, 2}


def test_the_merge_is_data(root, tmp_path):
    merge = load_merge()
    assert sorted(label for labels in merge.values() for label in labels) == list(range(18))
    other = tmp_path / "merge.json"
    other.write_text(json.dumps({"nothing": [0], "everything": list(range(1, 18))}))
    assert ATR(root, "train", size=40, merge=other).load_mask(0).unique().tolist() == [0, 1]
    other.write_text(json.dumps({"nothing": [0], "everything": list(range(2, 18))}))
    with pytest.raises(ValueError, match="every label of 0 to 17 belongs to one class"):
        load_merge(other)


def test_lists_may_lie_beside_the_pictures_and_chictopia_may_stay_out(root):
    (root / "val_id.txt").rename(root / "humanparsing" / "val_id.txt")
    assert len(ATR(root, "val")) == 1
    name = (root / "test_id.txt").read_text().split()[0]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        path = root / "humanparsing" / folder / f"{name}.{suffix}"
        path.rename(path.with_stem("dataset10k_7"))
    (root / "test_id.txt").write_text((root / "test_id.txt").read_text().replace(name, "dataset10k_7"))
    assert "dataset10k_7" in ATR(root, "test").ids
    assert len(ATR(root, "test", skip_chictopia=True)) == 1


def break_missing(path):
    path.with_suffix(".png").unlink()
    return r"3_1.png is missing, though 3_1 is in the list"


def break_size(path):
    Image.new("P", (20, 40)).save(path)
    return r"3_1.png is a mask of \(20, 40\) pixels for a picture of \(40, 40\)"


def break_label(path):
    Image.fromarray(np.full((40, 40), 18, np.uint8)).save(path)
    return "3_1.png has label 18; ATR's go up to 17"


def break_picture(path):
    picture = path.parents[1] / "JPEGImages" / "3_1.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    return r"3_1.jpg can't be read as an image"


@pytest.mark.parametrize("spoil", [break_missing, break_size, break_label, break_picture])
def test_bad_files_are_named_or_skipped(root, spoil):
    message = spoil(root / "humanparsing" / "SegmentationClassAug" / "3_1.png")
    with pytest.raises(ValueError, match=message):
        ATR(root, "train")
    data = ATR(root, "train", skip_bad=True)
    assert data.ids == ["0_1", "1_1", "2_1"]
    assert [path.name for path, _ in data.skipped] == ["3_1.jpg"]


def test_refuses(root, tmp_path):
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', 'test'; got 'dev'"):
        ATR(root, "dev")
    with pytest.raises(ValueError, match="has no folder humanparsing"):
        ATR(tmp_path, "train")
    (root / "train_id.txt").write_text("")
    with pytest.raises(ValueError, match="no usable picture among the 0 ids"):
        ATR(root, "train")
    (root / "train_id.txt").unlink()
    with pytest.raises(ValueError, match="there is no train_id.txt"):
        ATR(root, "train")


def test_pictures_alone_need_no_video_decoder(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "cmx_fast.data.media.decode_pyav", raising=False)
    decode._backend.cache_clear()
    assert len(Pictures(ATR(root, "train", size=20))) == 4
