import numpy as np
import pytest
import torch
from PIL import Image

from cmx_fast.cluster import KMeans
from cmx_fast.data.sets.atr import LABELS, load_merge
from cmx_fast.evaluate.segmentation import agreement, confusion, scores
from cmx_fast.simulate.commands import simulate_people
from cmx_fast.simulate.people.renderer import HAIR, PANTS, UPPER, render_person


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
    simulate_people(tmp_path / "other", people=5, size=48, seed=1, workers=1)
    name = "humanparsing/JPEGImages/1_1.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (people / name).read_bytes()
    few = [(tmp_path / "other" / f"{split}_id.txt").read_text().split() for split in ("train", "val", "test")]
    assert [len(names) for names in few] == [3, 1, 1]


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


@pytest.fixture(scope="module")
def crowd():
    """Pictures (64, 3, 96, 48) in [0, 1] and their classes (64, 96, 48): background, upper and lower body."""
    table = torch.empty(LABELS, dtype=torch.int64)
    for number, labels in enumerate(load_merge().values()):
        table[labels] = number
    pairs = [render_person(np.random.default_rng([3, index]), 48) for index in range(64)]
    pictures = torch.stack([torch.from_numpy(np.array(picture)).movedim(-1, 0) for picture, _ in pairs])
    masks = torch.stack([table[torch.from_numpy(np.array(mask)).long()] for _, mask in pairs])
    return pictures.float() / 255, masks


def test_colours_do_not_tell_the_classes_apart(crowd):
    """Three clusters of raw colours, matched one to one: less than calling everything background."""
    pictures, masks = crowd
    pixels, classes = pictures.movedim(1, -1).reshape(-1, 3), masks.flatten()
    for seed in range(2):
        labels = KMeans(3, n_init=2, random_state=seed).fit_predict(pixels[::3].contiguous())
        score = scores(confusion(labels, classes[::3], 3, 3))["accuracy"]
        assert score < min(0.6, float((classes == 0).double().mean()))
    # Nor does the best use of them: the most frequent class of each of 512 colours.
    bins = (pixels * 7.999).long() @ torch.tensor([64, 8, 1])
    training = torch.arange(len(masks)).repeat_interleave(masks[0].numel()) < 48
    counts = confusion(bins[training], classes[training], 512, 3)
    right = (counts.argmax(1)[bins[~training]] == classes[~training]).double().mean()
    assert right < 0.6


def test_forms_tell_the_classes_apart(crowd):
    """A small network that learns from masks of 48 pictures labels 16 others, in brightness alone."""
    pictures, masks = crowd
    grey = pictures.mean(1, keepdim=True)
    grey = (grey - grey.mean((1, 2, 3), keepdim=True)) / grey.std((1, 2, 3), keepdim=True)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 16, 4, 2, 1), torch.nn.ReLU()]
    for dilation in (1, 2, 4, 8, 1):
        layers += [torch.nn.Conv2d(16, 16, 3, padding=dilation, dilation=dilation), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 3, 1), torch.nn.Upsample(scale_factor=2))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(140):
        rows = torch.arange(16) * 3 + step % 3
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(grey[rows]), masks[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        predicted = network(grey[48:]).argmax(1)
    result = agreement(confusion(predicted, masks[48:], 3, 3))
    assert result.accuracy > 0.8 and result.iou.min() > 0.4


def test_refuses_a_folder_that_is_in_use(people):
    before = files(people)
    with pytest.raises(ValueError, match="is not empty; choose another folder or pass --overwrite"):
        simulate_people(people, people=5)
    with pytest.raises(ValueError, match=r"people \(2\) must be at least 5"):
        simulate_people(people, people=2, overwrite=True)
    assert files(people) == before
