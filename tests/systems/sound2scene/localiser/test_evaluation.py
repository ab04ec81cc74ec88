"""The protocol of ``cmx evaluate localiser``, on localisers whose behaviour is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.sounding_objects import vggss
from cmx_fast.systems.sound2scene.localiser.evaluation import measure, off_screen, tables
from cmx_fast.systems.sound2scene.localiser.report import edge

soundfile = pytest.importorskip("soundfile", reason="needs the media extra")

RATE, COUNT = 16000, 18
#: Class -> pitch in hertz, and the picture's channel that its object fills.
PITCHES = {"red": 400, "green": 1000, "blue": 2500}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of one bright square on grey, red, green or blue, that sounds at its colour's pitch."""
    root = tmp_path_factory.mktemp("vggss")
    for folder in ("frames", "audio"):
        (root / folder).mkdir()
    generator = np.random.default_rng(0)
    entries = []
    for i in range(COUNT):
        channel = i % 3
        label = list(PITCHES)[channel]
        left, top = generator.integers(0, 3, 2) * 16
        picture = np.full((64, 64, 3), 90, np.uint8)
        picture[top : top + 32, left : left + 32] = 40
        picture[top : top + 32, left : left + 32, channel] = 250
        Image.fromarray(picture).save(root / "frames" / f"v{i}_000000.jpg", quality=95)
        wave = 0.4 * np.sin(2 * np.pi * PITCHES[label] * np.arange(RATE // 4) / RATE)
        soundfile.write(root / "audio" / f"v{i}_000000.wav", wave, RATE)
        box = [left / 64, top / 64, (left + 32) / 64, (top + 32) / 64]
        entries.append({"file": f"v{i}_000000", "class": label, "bbox": [box]})
    (root / "vggss.json").write_text(json.dumps(entries))
    return root


class Listening(torch.nn.Module):
    """Finds the colour that a pitch belongs to; nothing where it hears no pitch."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode_picture(self, pictures):
        small = F.avg_pool2d(pictures, 4)
        bright = F.relu(small - small.mean(1, keepdim=True))
        rest = torch.full_like(bright[:, :1], 0.1)
        return F.normalize(torch.cat([bright, rest], 1), dim=1)

    def encode_sound(self, waves):
        spectrum = torch.fft.rfft(waves).abs()
        bins = [round(pitch * waves.shape[1] / RATE) for pitch in PITCHES.values()]
        tones = torch.stack([spectrum[:, b - 1 : b + 2].amax(1) for b in bins], 1)
        rest = spectrum.sum(1, keepdim=True) - tones.sum(1, keepdim=True) + 1e-3
        heard = F.normalize(torch.cat([F.relu(tones - rest), rest], 1), dim=1)
        return heard * torch.tensor([1.0, 1, 1, 0])


class Deaf(Listening):
    """Points at what is colourful, whatever it hears."""

    def encode_sound(self, waves):
        return F.normalize(torch.ones(len(waves), 4), dim=1) * torch.tensor([1.0, 1, 1, 0])


def measured(root, localiser, validation=0.3):
    objects = vggss(root)
    data = SceneData(objects.scenes, size=64, stretch=True, seconds=0.25, workers=0)
    return measure(localiser, objects, data, validation)


def test_a_listener_is_told_from_a_model_that_always_points_somewhere(root):
    listening, deaf = (measured(root, kind()).figures["localiser"] for kind in (Listening, Deaf))
    assert listening["hits"] == deaf["hits"] == 1  # own sounds alone tell nothing apart
    for kind in ("silence", "noise", "off-screen"):
        assert listening[f"{kind} false positives"] == 0 and listening[f"{kind} F1"] == 1
        assert listening[f"{kind} below own"] == 1
        assert deaf[f"{kind} false positives"] == 1 and deaf[f"{kind} F1"] == pytest.approx(2 / 3)
        assert deaf[f"{kind} below own"] == 0.5


def test_the_middle_is_a_row_and_hears_nothing(root):
    result = measured(root, Listening())
    assert (result.pictures, result.validation) == (18, 5)
    middle = result.figures["middle"]
    assert middle["hits"] < 0.6 < result.figures["localiser"]["cIoU"] + 0.6
    assert middle["silence below own"] == middle["off-screen below own"] == 0.5
    assert middle["silence false positives"] == 1
    own, others = tables(result)
    assert own.row_count == 2 and others.row_count == 6


def test_an_off_screen_sound_is_of_another_class():
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    for _ in range(2):
        other = off_screen(labels)
        assert (labels[other] != labels).all()
    alone = off_screen(torch.zeros(4, dtype=torch.int64))
    assert (alone != torch.arange(4)).all()
    with pytest.raises(ValueError, match="take at least 2 recordings; 1 can be read"):
        off_screen(torch.zeros(1, dtype=torch.int64))


def test_a_validation_part_needs_pictures_on_both_sides(root):
    with pytest.raises(ValueError, match="validation = 0.01 of 18 pictures leaves none on one side"):
        measured(root, Listening(), 0.01)


def test_a_regions_edge_is_one_pixel_wide():
    region = torch.zeros(6, 6, dtype=torch.bool)
    region[1:5, 0:4] = True
    inner = torch.zeros_like(region)
    inner[2:4, 1:3] = True
    assert (torch.from_numpy(edge(region)) == region & ~inner).all()
    assert not edge(torch.zeros(3, 3, dtype=torch.bool)).any()
