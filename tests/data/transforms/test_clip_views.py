from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv

from cmx_fast.data.transforms.clip_views import MEAN, STD, CentreCrop, ClipViews

INDEX = torch.arange(6)
SIZES = torch.tensor([[40, 60]] * 6)


def views(index=INDEX, sizes=SIZES, seed=0, epoch=0, crop=32, **options) -> ClipViews:
    return ClipViews(index, sizes, seed=seed, epoch=epoch, crop=crop, **options)


def random_clips(count: int = 6) -> torch.Tensor:
    return torch.randint(256, (count, 3, 3, 40, 60), dtype=torch.uint8)


def with_a_spot(x: int, y: int, count: int = 6) -> torch.Tensor:
    """Black frames of 40 x 60 with a white square of 5 pixels around (x, y)."""
    frames = torch.zeros(count, 2, 3, 40, 60, dtype=torch.uint8)
    frames[..., y - 2 : y + 3, x - 2 : x + 3] = 255
    return frames


def centre_of_light(view: torch.Tensor) -> torch.Tensor:
    """The (x, y) of the bright part of views (B, 3, T, S, S), as shares."""
    light = (view * STD + MEAN).mean((1, 2))
    cells = (torch.arange(light.shape[-1]) + 0.5) / light.shape[-1]
    mass = light.sum((1, 2))
    return torch.stack([(light.sum(1) * cells).sum(1) / mass, (light.sum(2) * cells).sum(1) / mass], 1)


def test_a_window_is_all_that_is_seen():
    frames, window = random_clips(), (0.5, 0.25, 0.5, 0.75)  # 30 x 30 pixels from (30, 10) on
    got = CentreCrop(SIZES, crop=30, window=window)(frames)
    expected = frames[..., 10:40, 30:60].float().transpose(1, 2)
    torch.testing.assert_close(got * STD + MEAN, expected / 255, rtol=0, atol=1e-5)
    inside = views(window=window, smallest_crop=0.5)
    assert (inside.left >= 30).all() and (inside.left + inside.side <= 60 + 1e-4).all()
    assert (inside.top >= 10).all() and (inside.top + inside.side <= 40 + 1e-4).all()
    for bad in ((0.5, 0.0, 0.6, 1.0), (0.0, 0.0, 0.0, 1.0), (0.1, 0.1)):
        with pytest.raises(ValueError, match="window must be left, top, width and height"):
            CentreCrop(SIZES, window=bad)


def test_centre_crop_is_the_resized_centre():
    frames = random_clips()
    got = CentreCrop(SIZES, crop=20)(frames)
    centre = frames[..., 10:50].flatten(0, 1).float()
    expected = F.interpolate(centre, size=(20, 20), mode="bilinear").unflatten(0, (6, 3)).transpose(1, 2)
    assert got.shape == (6, 3, 3, 20, 20) and got.dtype == torch.float32
    torch.testing.assert_close(got, (expected / 255 - 0.45) / 0.225)


def test_a_clip_has_the_same_view_in_any_batch():
    frames = random_clips()
    together, alone = views(jitter=0.4)(frames), views(INDEX[2:3], SIZES[:1], jitter=0.4)(frames[2:3])
    torch.testing.assert_close(together[2:3], alone)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"index": INDEX + 10}])
def test_seed_epoch_and_clip_decide(other):
    first, second = views(jitter=0.4), views(jitter=0.4, **other)
    assert not torch.isclose(first.side, second.side).any()
    assert not torch.isclose(first.left, second.left).any()
    assert not torch.isclose(first.factors, second.factors).any()


def test_windows_are_those_of_resizing_and_cropping():
    drawn = views(torch.arange(500), SIZES[:1].expand(500, 2))
    assert drawn.side.min() >= 32 and drawn.side.max() <= 40
    resized = 40 / drawn.side  # the shorter side in crops
    assert resized.min() < 1.01 and resized.max() > 1.24
    assert resized.mean() == pytest.approx(1.125, abs=0.01)
    assert (drawn.left >= 0).all() and (drawn.left + drawn.side <= 60).all()
    assert (drawn.top >= 0).all() and (drawn.top + drawn.side <= 40).all()
    assert drawn.left.min() < 1 and (drawn.left + drawn.side).max() > 59
    assert drawn.mirrored.float().mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("x", [20, 33])
def test_points_of_the_frame_are_found_in_the_view(x):
    frames, points = with_a_spot(x, 21), torch.tensor([[(x + 0.5) / 60, 21.5 / 40]]).expand(6, 1, 2)
    for drawn in (views(seed=4, crop=64), CentreCrop(SIZES, crop=64)):
        places = drawn.places(points)[:, 0]
        inside = ((places > 0.1) & (places < 0.9)).all(1)
        assert inside.sum() >= 4
        torch.testing.assert_close(centre_of_light(drawn(frames))[inside], places[inside], atol=0.01, rtol=0)
    assert views(seed=4).mirrored.any() and not views(seed=4).mirrored.all()


def test_the_empty_part_of_a_frame_is_never_seen():
    sizes = torch.tensor([[30, 40]] * 6)
    frames = torch.zeros(6, 1, 3, 40, 60, dtype=torch.uint8)
    frames[..., :30, :40] = 200
    for drawn in (views(sizes=sizes, crop=64), CentreCrop(sizes, crop=64)):
        view = drawn(frames) * STD + MEAN
        torch.testing.assert_close(view, torch.full_like(view, 200 / 255))


def test_colours_change_alike_in_all_frames_of_a_clip():
    frames = random_clips(2)[:, :1].expand(-1, 3, -1, -1, -1)
    drawn = views(INDEX[:2], SIZES[:2], jitter=0.4)
    view = drawn(frames)
    torch.testing.assert_close(view[:, :, 0], view[:, :, 2])
    plain = views(INDEX[:2], SIZES[:2])(frames) * STD + MEAN
    for row in range(2):
        brightness, contrast, saturation = drawn.factors[row].tolist()
        expected = tv.adjust_brightness(plain[row, :, 0], brightness)
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(view[row, :, 0] * STD + MEAN, expected, atol=2e-3, rtol=0)


def test_refuses():
    with pytest.raises(ValueError, match="frames must be uint8"):
        views()(random_clips().float())
    with pytest.raises(ValueError, match="can't hold 6 clips"):
        views()(random_clips()[..., :50])
    with pytest.raises(ValueError, match="can't hold 6 clips"):
        views()(random_clips(5))
    with pytest.raises(ValueError, match="sizes must be"):
        CentreCrop(torch.tensor([40, 60]))
    with pytest.raises(ValueError, match="same clips"):
        views(INDEX[:2])
    with pytest.raises(ValueError, match="smallest_crop must be in"):
        views(smallest_crop=0.0)
    with pytest.raises(ValueError, match="jitter must be in"):
        views(jitter=1.5)
    with pytest.raises(ValueError, match="crop must be at least 1"):
        CentreCrop(SIZES, crop=0)
