import numpy as np
import pytest
import torch
from PIL import Image

from cmx_fast.data.sets.atr import ATR, LABELS
from cmx_fast.simulate.people.renderer import HAIR, PANTS, UPPER, render_person
from cmx_fast.simulate.people.simulate import simulate_people


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people") / "set"
    simulate_people(root, people=20, size=48)
    return root


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_atrs(people):
    lists = [(people / f"{split}_id.txt").read_text().split() for split in ("train", "val", "test")]
    assert [len(names) for names in lists] == [16, 1, 3]
    names = sorted(name for names in lists for name in names)
    assert len(set(names)) == 20
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        assert sorted(path.stem for path in (people / "humanparsing" / folder).glob(f"*.{suffix}")) == names
    with Image.open(people / "humanparsing" / "SegmentationClassAug" / "1_1.png") as mask:
        assert mask.mode == "P" and mask.size == (48, 96)
        assert np.asarray(mask).max() < LABELS


def test_same_seed_same_files_whatever_the_processes(people, tmp_path):
    simulate_people(tmp_path / "again", people=20, size=48, workers=1)
    assert files(tmp_path / "again") == files(people)
    simulate_people(tmp_path / "other", people=5, size=48, seed=1)
    name = "humanparsing/JPEGImages/1_1.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (people / name).read_bytes()


def test_masks_lie_where_the_parts_are_drawn():
    parts = set()
    for index in range(12):
        picture, mask = render_person(np.random.default_rng([0, index]), 64)
        labels, pixels = np.asarray(mask), np.asarray(picture).astype(float)
        assert pixels.shape[:2] == labels.shape
        parts |= set(np.unique(labels).tolist())
        # A part's colours change where its mask ends: across the border more than inside.
        rows = labels == UPPER if (labels == UPPER).any() else labels > 0
        border = (rows[:, 1:] != rows[:, :-1]) & ((labels[:, 1:] == 0) | (labels[:, :-1] == 0))
        background = (labels[:, 1:] == 0) & (labels[:, :-1] == 0)
        change = np.abs(pixels[:, 1:] - pixels[:, :-1]).sum(2)
        assert change[border].mean() > 2 * change[background].mean()
        middle = np.flatnonzero((labels == HAIR).any(1)), np.flatnonzero((labels == PANTS).any(1))
        if len(middle[0]) and len(middle[1]):
            assert middle[0].mean() < middle[1].mean()
    assert {0, HAIR, UPPER, PANTS, 9, 10, 11} <= parts


def test_parts_have_their_typical_colours(people):
    # What makes the stand-in easy: trousers are dark, tops warm, backgrounds pale.
    data = ATR(people, "train", size=48)
    pixels = torch.stack([data.load_image(i) for i in range(len(data))]).movedim(1, -1).reshape(-1, 3).float()
    masks = torch.stack([data.load_mask(i) for i in range(len(data))]).flatten()
    background, upper, lower = (pixels[masks == part] for part in range(3))
    assert background.mean() > upper.mean() + 40 > lower.mean() + 80
    assert (upper[:, 0] - upper[:, 2]).mean() > 60 > 30 > (background[:, 0] - background[:, 2]).mean().abs()


def test_refuses_a_folder_that_is_in_use(people):
    before = files(people)
    with pytest.raises(ValueError, match="is not empty; choose another folder or pass --overwrite"):
        simulate_people(people, people=5)
    with pytest.raises(ValueError, match=r"people \(2\) must be at least 5"):
        simulate_people(people, people=2, overwrite=True)
    assert files(people) == before
