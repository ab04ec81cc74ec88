"""Pictures with masks, in a plain folder and in VOC's layout."""

from __future__ import annotations

import numpy as np
import pytest
from picture_sets import CLASSES, write_masked, write_voc
from PIL import Image

from cmx_fast.data.sets.masked_pictures import VOC_CLASSES, folder, voc


@pytest.fixture
def root(tmp_path):
    return write_masked(tmp_path / "folder", {"train": 4, "test": 2})


def test_a_plain_folder(root):
    data = folder(root, "train", size=48)
    assert len(data) == 4 and data.class_names == list(CLASSES) and data.ids == ["0", "1", "2", "3"]
    item = data[1]
    assert item["image"].shape == (3, 48, 48)
    assert set(item["mask"].unique().tolist()) == {-1, 0, 2}
    assert item["mask"].eq(-1).nonzero()[:, 1].unique().tolist() == [47]
    blue = item["image"][:, item["mask"] == 2].double().mean(1)
    assert blue[2] > blue[0] + 100
    assert data.target(1)["mask"].equal(item["mask"])
    assert folder(root, "test", size=16).load_mask(0).shape == (16, 16)


def test_vocs_layout(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": 3, "val": 2})
    for root in (tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        data = voc(root, "val", size=48)
        assert data.ids == ["2007_val000", "2007_val001"] and tuple(data.class_names) == VOC_CLASSES
        assert set(data.load_mask(0).unique().tolist()) == {-1, 0, VOC_CLASSES.index("bicycle")}
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', 'trainval'; got 'test'"):
        voc(tmp_path / "VOCdevkit", "test", size=48)
    with pytest.raises(ValueError, match=r"there is no .*trainval.txt"):
        voc(tmp_path / "VOCdevkit", "trainval", size=48)


def test_bad_files_are_named_or_skipped(root):
    Image.fromarray(np.full((48, 48), 3, np.uint8)).save(root / "train" / "masks" / "2.png")
    (root / "train" / "pictures" / "notes.txt").write_text("a list\n")
    with pytest.raises(ValueError, match=r"masks/2.png has label 3; the classes go up to 2"):
        folder(root, "train", size=48)
    data = folder(root, "train", size=48, skip_bad=True)
    assert data.ids == ["0", "1", "3"]
    assert [path.name for path, _ in data.skipped] == ["2.jpg", "notes.txt"]


def test_refuses(root, tmp_path):
    with pytest.raises(ValueError, match="has no folder val/pictures"):
        folder(root, "val", size=48)
    with pytest.raises(ValueError, match=r"there is no .*classes.txt"):
        folder(tmp_path, "train", size=48)
    for file in (root / "test" / "pictures").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no usable picture among the 0 files of"):
        folder(root, "test", size=48)
