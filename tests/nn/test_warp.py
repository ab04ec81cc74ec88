from __future__ import annotations

import torch

from cmx_fast.nn import warp


def test_warp_of_a_crop():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    left_half = torch.tensor([[[0.5, 0, -0.5], [0, 1, 0]]])
    row = warp(ramp, left_half)[0, 0, 4]
    torch.testing.assert_close(row[1:-1], torch.arange(8.0)[1:-1] / 2 - 0.25)  # cells 0 to 3, twice as wide


def test_pictures_and_their_maps_stay_aligned():
    theta = torch.tensor([[[-0.5, 0, 0.25], [0, 0.5, -0.5]]])
    smooth = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    pooled = torch.nn.functional.avg_pool2d(smooth, 4)
    warped = torch.nn.functional.avg_pool2d(warp(smooth, theta), 4)
    torch.testing.assert_close(warp(pooled, theta), warped, atol=1e-3, rtol=0)


def test_labels_are_not_mixed():
    labels = torch.randint(5, (2, 1, 9, 9)).float()
    theta = torch.tensor([[[0.7, 0, 0.1], [0, 0.7, 0.2]]]).expand(2, 2, 3)
    warped = warp(labels, theta, "nearest")
    assert torch.equal(warped, warped.round())
