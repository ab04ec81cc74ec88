from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from cmx_fast.data.transforms.picture_views import Views, blend, blur, grey, turn_hue

INDEX = torch.arange(6)


def views(index=INDEX, seed=0, epoch=0, **options) -> Views:
    return Views(index, seed=seed, epoch=epoch, **options)


def test_a_picture_has_the_same_views_in_any_batch():
    images = torch.rand(6, 3, 24, 24)
    together, alone = views(), views(INDEX[2:3])
    assert torch.equal(together.theta[2:3], alone.theta)
    for view in (1, 2):
        changed = together.photometric(images, view)
        torch.testing.assert_close(changed[2:3], alone.photometric(images[2:3], view))
        assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"index": INDEX + 10}])
def test_seed_epoch_and_picture_decide(other):
    images = torch.rand(6, 3, 24, 24)
    assert not torch.isclose(views().theta, views(**other).theta)[:, :, 2].all(1).any()
    assert not torch.allclose(views().photometric(images, 1), views(**other).photometric(images, 1))


def test_the_two_views_differ_in_colour_and_share_the_geometry():
    drawn, images = views(), torch.rand(6, 3, 24, 24)
    assert not torch.allclose(drawn.photometric(images, 1), drawn.photometric(images, 2))
    red, green = drawn.geometric(torch.stack([images[:, 0], images[:, 1]], 1)).unbind(1)
    assert torch.equal(drawn.geometric(images)[:, 0], red)
    assert torch.equal(drawn.geometric(images)[:, 1], green)


def test_crops_stay_within_the_picture():
    theta = views(torch.arange(400), smallest_crop=0.6).theta
    scale = theta[:, 1, 1]
    assert scale.min() >= 0.6 and scale.max() <= 1
    assert scale.min() < 0.62 and scale.max() > 0.98
    torch.testing.assert_close(theta[:, 0, 0].abs(), scale)
    assert (theta[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (theta[:, :, 2].abs() + scale[:, None] <= 1 + 1e-6).all()
    assert (theta[:, 0, 1] == 0).all() and (theta[:, 1, 0] == 0).all()


def test_without_strength_only_the_blur_is_left():
    images = torch.rand(400, 3, 8, 8)
    changed = (
        (views(torch.arange(400), jitter=0.0, hue=0.0).photometric(images, 1) - images).abs().amax((1, 2, 3))
    )
    assert (changed > 1e-4).float().mean() < 0.55
    assert (changed < 1e-4).float().mean() > 0.45


def test_colour_changes_mean_what_torchvisions_do():
    image = torch.rand(1, 3, 9, 9)
    for factor in (0.4, 1.0, 1.7):
        share = torch.full((1, 1, 1, 1), factor)
        contrast = blend(image, grey(image).mean((2, 3), keepdim=True), share)
        torch.testing.assert_close(contrast, tv.adjust_contrast(image, factor), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            blend(image, grey(image), share), tv.adjust_saturation(image, factor), atol=1e-3, rtol=0
        )


def test_hue_turns_as_torchvisions_does():
    image = torch.rand(3, 3, 9, 9)
    image[:, :, 0] = 0.5  # grey has no hue
    image[:, :, 1] = torch.tensor([1.0, 0, 0])[:, None]
    for turn in (-0.5, -0.2, 0.0, 0.1, 0.37):
        torch.testing.assert_close(
            turn_hue(image, torch.full((3,), turn)), tv.adjust_hue(image, turn), atol=1e-5, rtol=0
        )


def test_blur_of_each_picture_by_its_own():
    images = torch.zeros(3, 3, 25, 25)
    images[:, :, 12, 12] = 1
    blurred = blur(images, torch.tensor([0.0, 1.0, 2.0]), 2.0)
    torch.testing.assert_close(blurred[0], images[0])
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(3, 3))
    places = torch.arange(-12.0, 13)
    for row, sigma in ((1, 1.0), (2, 2.0)):
        assert (blurred[row, 0].sum(0) * places.square()).sum().item() == pytest.approx(sigma**2, rel=0.02)


@pytest.mark.parametrize("options", [{"jitter": 1.5}, {"hue": 0.6}, {"smallest_crop": -0.1}])
def test_numbers_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be in"):
        views(**options)
