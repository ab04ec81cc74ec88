"""Form and sound tell the classes of simulated clips; colour, size, place and background do not."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

pytest.importorskip("av")

from cmx_fast.simulate.clips.objects import AREA, GROWTH, REACH, SHAPES, outline
from cmx_fast.simulate.clips.simulate import CLASSES, ClipSettings, render_clip
from cmx_fast.simulate.commands import simulate_clips

TRAIN, COUNT = 320, 448
SETTINGS = ClipSettings(
    width=64, height=48, seconds=1.25, fps=2, sample_rate=16000, distractors=0, largest=0.36, places=3
)


@pytest.fixture(scope="module")
def clips():
    return [render_clip(i, SETTINGS, "train" if i < TRAIN else "test") for i in range(COUNT)]


def right(features):
    """The share of held-out clips whose class a ridge regression on standardised features tells."""
    features = np.stack(features)
    features = (features - features[:TRAIN].mean(0)) / (features[:TRAIN].std(0) + 1e-6)
    features = np.concatenate([features, np.ones((COUNT, 1))], 1)
    targets = np.eye(len(CLASSES))[np.arange(COUNT) % len(CLASSES)]
    train = features[:TRAIN]
    gram = train.T @ train + 30 * np.eye(train.shape[1])
    scores = features[TRAIN:] @ np.linalg.solve(gram, train.T @ targets[:TRAIN])
    return float((scores.argmax(1) == np.arange(TRAIN, COUNT) % len(CLASSES)).mean())


def statistics(clip):
    """Colours of the picture and of a grid of places, their spread, and the object's place and size."""
    frame = clip.frames[1].astype(float)
    grid = frame.reshape(4, 12, 4, 16, 3).mean((1, 3)).ravel()
    saturation = np.ptp(frame, axis=2)
    whole = [*frame.mean((0, 1)), *frame.std((0, 1)), saturation.mean(), (saturation > 90).mean()]
    return np.array([*grid, *whole, *clip.track[1]])


def silhouette(clip):
    """The saturated pixels around the object, on 14 x 14 places of its own size."""
    x, y, radius = clip.track[1]
    offset = np.linspace(-1.1, 1.1, 14) * radius
    rows, columns = ((c + offset).round().astype(int) for c in (y, x))
    window = clip.frames[1][rows.clip(0, 47)][:, columns.clip(0, 63)].astype(float)
    return (np.ptp(window, axis=2) > 75).ravel().astype(float)


def timbre(clip):
    """How far apart the partials are, whatever their pitch: the spectrum's self-similarity over octaves."""
    begin = int(np.abs(clip.wave).reshape(-1, 500).mean(1)[:-8].argmax()) * 500
    window = clip.wave[max(0, begin - 2000) :][:4096]
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), 8192))
    steps = 80 * 2 ** (np.arange(300) / 42)
    levels = np.log(np.interp(steps, np.arange(len(spectrum)) * 16000 / 8192, spectrum) + 0.3)
    levels -= levels.mean()
    return np.correlate(levels, levels, "full")[300:450] / (levels**2).sum()


def test_colours_places_and_backgrounds_are_chance(clips):
    assert right([statistics(clip) for clip in clips]) < 1 / 8 + 0.09


def test_form_tells_the_class(clips):
    assert right([silhouette(clip) for clip in clips]) > 0.6


def test_sound_tells_the_class(clips):
    assert right([timbre(clip) for clip in clips]) > 0.6


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_the_same_area(shape):
    side = np.linspace(-1.3, 1.3, 651)
    x, y = np.meshgrid(side, side)
    inside = outline(shape, x, y) < 0
    assert inside.mean() * 2.6**2 == pytest.approx(AREA, rel=0.01)
    assert np.hypot(x, y)[inside].max() <= REACH


def test_objects_stay_in_the_frame(clips):
    for clip in clips:
        x, y, radius = clip.track.T
        reach = REACH * radius
        assert radius.max() <= GROWTH * 0.36 * 48
        assert (x - reach >= -0.5).all() and (x + reach <= 64.5).all()
        assert (y - reach >= -0.5).all() and (y + reach <= 48.5).all()


def test_splits_share_no_background():
    """A pixel's median over the frames of a clip without silent objects is its background's."""
    settings = ClipSettings(width=64, height=48, seconds=1.25, fps=8, distractors=0, largest=0.06, places=2)
    seen = {
        split: [np.median(render_clip(i, settings, split).frames, 0) for i in range(12)]
        for split in ("train", "val", "test")
    }

    def nearest(a, b):
        return min(np.abs(a - other).mean() for other in b)

    for split, others in seen.items():
        for i, own in enumerate(others):
            assert (
                nearest(own, others[:i] + others[i + 1 :]) < 4
            )  # two backgrounds for twelve clips of all classes
            foreign = [picture for name, pictures in seen.items() if name != split for picture in pictures]
            assert nearest(own, foreign) > 8


def test_vggsounds_layout_has_boxes_of_the_test_clips(tmp_path):
    simulate_clips(
        tmp_path / "c", clips=16, width=48, height=32, seconds=1.25, fps=12, layout="vggsound", workers=1
    )
    with (tmp_path / "c" / "vggsound.csv").open() as file:
        rows = list(csv.reader(file))
    assert [sum(row[3] == split for row in rows) for split in ("train", "val", "test")] == [12, 4, 4]
    boxes = {entry["file"]: entry for entry in json.loads((tmp_path / "c" / "vggss.json").read_text())}
    assert boxes.keys() == {f"{row[0]}_{int(row[1]):06d}" for row in rows if row[3] == "test"}
    with (tmp_path / "c" / "positions.csv").open() as file:
        middle = {row["name"]: row for row in csv.DictReader(file) if row["frame"] == "7"}
    for row in rows:
        if row[3] == "test":
            name = f"{row[0]}_{int(row[1]):06d}"
            ((left, top, right, bottom),) = boxes[name]["bbox"]
            assert boxes[name]["class"] == row[2]
            assert (left + right) / 2 * 48 == pytest.approx(float(middle[name]["x"]), abs=0.1)
            assert (bottom - top) * 32 == pytest.approx(2 * float(middle[name]["radius"]), abs=0.1)
