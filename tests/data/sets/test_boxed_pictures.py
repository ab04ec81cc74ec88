"""Pictures with boxes in VOC's layout."""

from __future__ import annotations

import pytest
import torch
from picture_sets import write_voc_objects

from cmx_fast.data.sets.boxed_pictures import voc_objects
from cmx_fast.data.sets.masked_pictures import VOC_CLASSES


@pytest.fixture
def root(tmp_path):
    return write_voc_objects(tmp_path / "VOCdevkit" / "VOC2012", {"train": 3, "val": 1})


def test_vocs_objects(root):
    for folder in (root, root.parent):
        data = voc_objects(folder, "train", size=96)
        assert data.ids == ["2007_train000", "2007_train001", "2007_train002"]
    assert data.class_names == list(VOC_CLASSES[1:])
    target = data.target(1)
    assert [VOC_CLASSES[label] for label in target["labels"]] == ["bird", "car"]
    assert target["difficult"].tolist() == [False, True]
    left, top, right, bottom = (96 * target["boxes"][0]).round().int().tolist()
    inside = data.load_image(1)[:, top + 3 : bottom - 3, left + 3 : right - 3].double().mean((1, 2))
    assert inside[2] > inside[0] + 100 and right - left == bottom - top == 48


def test_rows_are_as_many_in_every_picture(root):
    file = root / "Annotations" / "2007_train001.xml"
    file.write_text(file.read_text().replace("</annotation>", _thing("dog", 2, 3, 10, 11) + "</annotation>"))
    data = voc_objects(root, "train", size=32)
    assert [data.target(i)["labels"].gt(0).sum() for i in range(3)] == [2, 3, 2]
    assert {data.target(i)["boxes"].shape for i in range(3)} == {(3, 4)}
    torch.testing.assert_close(data.target(1)["boxes"][2], torch.tensor([1, 2, 10, 11]) / 48)


def _thing(name, *corners):
    ends = zip(("xmin", "ymin", "xmax", "ymax"), corners)
    box = "".join(f"<{end}>{value}</{end}>" for end, value in ends)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "can't be read as an annotation of VOC"),
        (lambda text: text.replace("car", "cart"), "'cart' is no class of VOC"),
        (
            lambda text: text.replace("<xmin>", "<left>").replace("</xmin>", "</left>"),
            "it has no bndbox/xmin",
        ),
        (
            lambda text: text.replace("</annotation>", _thing("dog", 9, 3, 4, 11) + "</annotation>"),
            "box 9, 3, 4, 11",
        ),
    ],
)
def test_annotations_that_do_not_fit_are_named(root, change, message):
    file = root / "Annotations" / "2007_train001.xml"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=f"2007_train001.xml .*{message}"):
        voc_objects(root, "train", size=32)


def test_missing_files_are_named(root):
    (root / "JPEGImages" / "2007_train002.jpg").unlink()
    with pytest.raises(ValueError, match="2007_train002.jpg: missing"):
        voc_objects(root, "train", size=32)
    data = voc_objects(root, "train", size=32, skip_bad=True)
    assert len(data) == 2 and [path.name for path, _ in data.skipped] == ["2007_train002.jpg"]
    (root / "Annotations" / "2007_train001.xml").unlink()
    with pytest.raises(ValueError, match="2007_train001.xml is missing, though 2007_train001 is in the list"):
        voc_objects(root, "train", size=32)
