"""Pointing at the sounding object: masks from positions, and hits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cmx_fast.data.transforms.clip_views import CentreCrop
from cmx_fast.systems.cmac.features import SpacedClips
from cmx_fast.systems.cmac.localisation import Positions, hits


@pytest.fixture
def positions(tmp_path):
    """A recording of 64 x 32 pixels at 4 fps: the object moves right by 8 pixels per frame at half height."""
    rows = "".join(f"one,{i},{8 + 8 * i},16,4\n" for i in range(8))
    (tmp_path / "positions.csv").write_text("name,frame,x,y,radius\n" + rows)
    clips = SimpleNamespace(
        entries=[SimpleNamespace(name="one")], media=[SimpleNamespace(fps=4.0, width=64, height=32)]
    )
    return Positions(tmp_path / "positions.csv", clips)


def view(start, side=16):
    # Frames were resized to half: 32 x 16, of which the middle 16 x 16 is seen, so view x = (file x - 16) / 2.
    crop = CentreCrop(torch.tensor([[16, 32]]), crop=side)
    return SpacedClips(
        torch.empty(1, 3, 4, side, side), torch.empty(0), torch.tensor([0]), torch.tensor([start]), crop
    )


def test_masks_follow_the_object_through_the_crop(positions):
    masks = positions.masks(view(0.5), times=4, frames=4, fps=4.0)
    assert masks.shape == (1, 4, 16, 16)
    for step in range(4):  # file frames 2 to 5: x = 24, 32, 40, 48
        rows, columns = masks[0, step].nonzero().unbind(1)
        x = (24 + 8 * step - 16) / 2
        inside = min(16.0, x + 2) - (x - 2)
        assert rows.float().add(0.5).mean() == pytest.approx(8)
        assert columns.min() == max(0, x - 2) and columns.max() + 1 == pytest.approx(x - 2 + inside)


def test_a_step_of_the_map_lasts_several_frames(positions):
    one, two = (positions.masks(view(0.5), times, 4, 4.0) for times in (4, 2))
    assert two.equal(one.unflatten(1, (2, 2)).any(2))


def test_peaks_hit_or_miss(positions):
    masks = positions.masks(view(0.5), times=2, frames=4, fps=4.0)
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 4, 2] = 1.0  # around (5, 9) of the view: in this step the object is at (4, 8) and (8, 8)
    maps[0, 1, 0, 0] = 1.0
    assert hits(maps, masks).tolist() == [[True, False]]


def test_a_recording_without_positions(tmp_path):
    (tmp_path / "positions.csv").write_text("name,frame,x,y,radius\n")
    with pytest.raises(ValueError, match=r"has no one, nor 0 more"):
        Positions(tmp_path / "positions.csv", SimpleNamespace(entries=[SimpleNamespace(name="one")]))
