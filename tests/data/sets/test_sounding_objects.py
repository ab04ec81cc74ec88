"""Small copies of VGG-SS and Flickr-SoundNet in their own layouts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.sounding_objects import flickr_soundnet, vggss

soundfile = pytest.importorskip("soundfile", reason="needs the media extra")

WAVE = 0.3 * np.sin(np.arange(4000))
BOXES = [[[0.1, 0.2, 0.5, 0.6]], [[-0.02, 0, 0.5, 1.01], [0.5, 0.5, 1, 1]], [[0, 0, 1, 1]]]
NAMES = ["abc_000030", "d-f_x_000001", "ghi_7"]


def write_pair(picture, sound, size=(80, 40)):
    for file in (picture, sound):
        file.parent.mkdir(parents=True, exist_ok=True)
    left = Image.new("RGB", size, (250, 20, 20))
    left.paste((20, 20, 250), (size[0] // 2, 0, *size))
    left.save(picture, quality=95)
    soundfile.write(sound, WAVE, 16000)


@pytest.fixture
def root(tmp_path):
    for name in ("abc_000030", "d-f_x_000001", "ghi_000007"):  # the list has one start that is not padded
        write_pair(tmp_path / "frames" / f"{name}.jpg", tmp_path / "audio" / f"{name}.wav")
    entries = [
        {"file": name, "class": label, "bbox": boxes}
        for name, label, boxes in zip(NAMES, ("dog barking", "cat", "dog barking"), BOXES, strict=True)
    ]
    (tmp_path / "vggss.json").write_text(json.dumps(entries))
    return tmp_path


def test_vggss(root):
    objects = vggss(root)
    assert [scene.name for scene in objects.scenes.entries] == NAMES
    assert objects.scenes.class_names == ["cat", "dog barking"]
    assert [scene.label for scene in objects.scenes.entries] == [1, 0, 1]
    assert objects.agreeing == 1
    torch.testing.assert_close(objects.boxes[1], torch.tensor([[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]]))


def test_files_that_are_missing_are_named_and_boxes_stay_with_theirs(root):
    (root / "frames" / "abc_000030.jpg").unlink()
    objects = vggss(root)
    assert [path.name for path, _ in objects.scenes.skipped] == ["abc_000030.jpg"]
    assert [len(boxes) for boxes in objects.boxes] == [2, 1]


def test_whole_pictures_are_squeezed_as_the_boxes_are(root):
    data = SceneData(vggss(root).scenes, size=32, stretch=True, seconds=0.25, workers=0)
    picture = data.read_picture(0).double()
    assert picture.shape == (3, 32, 32)
    assert picture[0, :, :14].mean() > 200 and picture[2, :, 18:].mean() > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "vggss.json is no JSON"),
        ("{}", "must hold a list of recordings"),
        ('[{"file": "a_1", "class": "x"}]', r"entry 0: must have file, class and bbox.*KeyError\('bbox'\)"),
        ('[{"file": "a_1", "class": "x", "bbox": []}]', "entry 0: must have file, class and bbox"),
        (
            '[{"file": "a_1", "class": "x", "bbox": [[0.5, 0, 0.5, 1]]}]',
            r"a box of \[\[0.5, 0, 0.5, 1\]\] has no area",
        ),
        ('[{"file": "a_1", "class": 3, "bbox": [[0, 0, 1, 1]]}]', "file and class must be text"),
        (
            '[{"file": "a_1", "class": "x", "bbox": [[0, 0, 1, 1]]}]',
            "no recording that can be used; .*a_1.jpg: missing",
        ),
    ],
)
def test_refuses_vggss(root, content, message):
    (root / "vggss.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        vggss(root)


def test_vggss_without_its_list(tmp_path):
    with pytest.raises(ValueError, match="there is no .*vggss.json"):
        vggss(tmp_path)


def annotation(*people, names=True):
    ends = ("xmin", "ymin", "xmax", "ymax") if names else ("a", "b", "c", "d")
    boxes = "".join(
        "<person><name>p</name><bbox><label>x</label>"
        + "".join(f"<{end}>{value}</{end}>" for end, value in zip(ends, box, strict=True))
        + "</bbox></person>"
        for box in people
    )
    return f"<annotation>{boxes}</annotation>"


@pytest.fixture
def flickr(tmp_path):
    for name in ("123", "456"):
        write_pair(tmp_path / "Data" / f"{name}.jpg", tmp_path / "Data" / f"{name}.wav")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "123.xml").write_text(
        annotation((0, 0, 128, 128), (64, 64, 128, 192), (64, 0, 256, 128))
    )
    (tmp_path / "Annotations" / "456.xml").write_text(annotation((32, 64, 96, 128), names=False))
    return tmp_path


def test_flickr_has_the_boxes_of_several_people(flickr):
    objects = flickr_soundnet(flickr)
    assert [scene.name for scene in objects.scenes.entries] == ["123", "456"]
    assert objects.agreeing == 2
    expected = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.75], [0.25, 0, 1, 0.5]])
    torch.testing.assert_close(objects.boxes[0], expected)
    torch.testing.assert_close(objects.boxes[1], torch.tensor([[0.125, 0.25, 0.375, 0.5]]))


def test_flickrs_list_and_folders_for_pictures_and_sounds(flickr):
    (flickr / "frames").mkdir()
    (flickr / "audio").mkdir()
    (flickr / "Data" / "456.jpg").rename(flickr / "frames" / "456.jpg")
    (flickr / "Data" / "456.wav").rename(flickr / "audio" / "456.wav")
    (flickr / "flickr_test.csv").write_text("456\n")
    for file in (flickr / "Data").iterdir():
        file.unlink()
    (flickr / "Data").rmdir()
    assert [scene.name for scene in flickr_soundnet(flickr).scenes.entries] == ["456"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "123.xml can't be read as an annotation: no element"),
        ("<annotation></annotation>", "123.xml can't be read as an annotation: it has no bbox"),
        (annotation((0, 0, 5)[:2] * 2), r"has no area"),
        (annotation((0, 0, 1, 2)).replace("<ymax>2", "<ymax>two"), "can't be read as an annotation: could not"),
    ],
)  # fmt: skip
def test_refuses_flickr(flickr, content, message):
    (flickr / "Annotations" / "123.xml").write_text(content)
    with pytest.raises(ValueError, match=message):
        flickr_soundnet(flickr)


def test_flickr_without_its_annotations(tmp_path, flickr):
    (flickr / "flickr_test.csv").write_text("789\n")
    with pytest.raises(ValueError, match=r"789.xml is missing, though 789 is in the list"):
        flickr_soundnet(flickr)
    with pytest.raises(ValueError, match="has no folder Annotations"):
        flickr_soundnet(flickr / "Data")
