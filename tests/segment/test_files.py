"""Label maps of one's own pictures: what is written, named and left out."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cmx_fast.evaluate import segmentation
from cmx_fast.segment.files import names_below, segment_files, write_shares
from cmx_fast.segment.page import write_page
from cmx_fast.segment.segmenters import open_segmenter
from cmx_fast.train.picture_segmenter import PictureSegmenter, largest_enlarged


class Brightest(PictureSegmenter):
    """Red, green and blue are three scores; green and blue are one class."""

    def __init__(self):
        super().__init__(("warm", "cold"), (0, 1, 1), 32)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def scores(self, picture: Tensor) -> Tensor:
        assert picture.shape[1:] == (3, 32, 32)
        return F.avg_pool2d(picture, 8) * self.weight


@pytest.fixture
def halves():
    """A picture (3, 40, 60) that is red on its left and blue on its right."""
    picture = torch.zeros(3, 40, 60)
    picture[0, :, :30], picture[2, :, 30:] = 1, 1
    return picture


def write(path: Path, picture: Tensor, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * picture).byte().permute(1, 2, 0).numpy()).save(path, **options)


def test_pictures_of_any_size_and_batches_of_any_size_are_segmented(halves):
    segmenter = Brightest()
    labels = segmenter.segment(halves.expand(20, -1, -1, -1))
    assert labels.shape == (20, 40, 60) and labels.dtype == torch.int64
    assert (labels[:, :, :30] == 0).all() and (labels[:, :, 30:] == 1).all()
    assert segmenter.segment(halves[None, :, :3, 25:35]).tolist() == [[[0] * 5 + [1] * 5] * 3]
    for wrong in (halves, halves[None, :2], halves[None].byte()):
        with pytest.raises(ValueError, match=r"picture must be float \(B, 3, H, W\) in \[0, 1\], got"):
            segmenter.segment(wrong)


def test_channels_are_enlarged_a_few_at_a_time():
    scores = torch.randint(0, 4, (2, 7, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    right = F.interpolate(scores, (17, 9), mode="bilinear").argmax(1)
    for numbers in (1, 3 * 2 * 17 * 9, 10**6):
        assert largest_enlarged(scores, (17, 9), numbers).equal(right)


def test_files_become_label_maps_overlays_shares_and_a_page(halves, tmp_path):
    files = tmp_path / "files"
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn clockwise
    write(files / "a&b.png", halves)
    write(files / "deep/turned.jpg", halves, exif=turned)
    (files / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    paths = [files / name for name in ("a&b.png", "broken.jpg", "deep/turned.jpg")]
    named = list(zip(paths, names_below(paths, [files]), strict=True))
    advanced = []
    segmented, broken = segment_files(Brightest(), named, tmp_path / "out", lambda: advanced.append(1))
    assert [path.name for path, _ in broken] == ["broken.jpg"] and len(advanced) == 3

    straight = Image.open(tmp_path / "out/labels/a&b.png.png")
    assert straight.mode == "P" and straight.size == (60, 40)
    assert straight.getpalette()[:6] == [x for colour in segmentation.palette(2) for x in colour]
    assert (np.asarray(straight) == (np.arange(60) >= 30)).all()
    upright = np.asarray(Image.open(tmp_path / "out/labels/deep/turned.jpg.png"))
    assert upright.shape == (60, 40) and (upright[:25] == 0).all() and (upright[35:] == 1).all()
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/a&b.png.jpg"))
    warm, _ = segmentation.palette(2)
    assert np.abs(overlay[20, 5] - (np.array([255, 0, 0]) + warm) / 2).max() < 12

    write_shares(tmp_path / "out/shares.csv", segmented, ("warm", "cold"))
    with open(tmp_path / "out/shares.csv") as table:
        first, second = csv.DictReader(table)
    assert first == {"picture": "a&b.png", "warm": "0.5000", "cold": "0.5000"}
    assert second["picture"] == "deep/turned.jpg" and float(second["warm"]) == pytest.approx(0.5, abs=0.05)

    write_page(tmp_path / "out/segments.html", segmented, ("warm", "cold"), "2 <pictures>")
    page = (tmp_path / "out/segments.html").read_text()
    assert "2 &lt;pictures&gt;" in page and "a&amp;b.png" in page and "warm 50.0 %" in page
    assert page.count("data:image/jpeg") == 4 and page.count("data:image/png") == 2
    for link in re.findall(r'href="([^"]+)"', page):
        assert (tmp_path / "out" / link.replace("%26", "&")).is_file()


def test_two_files_never_have_one_name(tmp_path):
    one, other = tmp_path / "one/pictures", tmp_path / "other/pictures"
    assert names_below([one / "a.jpg", other / "b.jpg"], [one, other]) == [
        Path("pictures/a.jpg"),
        Path("pictures/b.jpg"),
    ]
    with pytest.raises(ValueError, match=r"would both be written as pictures/a.jpg"):
        names_below([one / "a.jpg", other / "a.jpg"], [one, other])


def test_what_can_not_be_written_is_refused(tmp_path):
    segmenter = Brightest()
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 pictures can be used \(.*a\.jpg: "):
        segment_files(segmenter, [(tmp_path / "a.jpg", Path("a.jpg"))], tmp_path / "out")
    segmenter.classes = tuple(map(str, range(257)))
    with pytest.raises(ValueError, match="an indexed picture holds 256 labels, the model has 257"):
        segment_files(segmenter, [], tmp_path / "out")


def test_only_runs_that_segment_are_opened(tmp_path):
    (tmp_path / "config.json").write_text('{"command": "train csir"}')
    with pytest.raises(
        ValueError, match="a run of cmx train csir, which does not segment pictures; those of cmx"
    ):
        open_segmenter(tmp_path)
