from __future__ import annotations

import pytest
import torch
from torch import nn

from cmx_fast.evaluate.gradcam import gradcam, last_map
from cmx_fast.systems.csir.model import image_encoder


class RedAndGreen(nn.Module):
    """8x8 maps of the picture's three colours; features are the means of red and green."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 3, 4, stride=4, bias=False))
        self.layer4[0].weight.data = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16

    def forward(self, image):
        return self.layer4(image)[:, :2].mean((2, 3))


def test_the_map_lights_what_raises_the_score():
    image = torch.zeros(2, 3, 32, 32)
    image[:, 0, :8, :8] = 1  # red, top left
    image[:, 1, 24:, 24:] = 1  # green, bottom right
    heat = gradcam(RedAndGreen(), image, lambda features: features.diagonal())
    assert heat.shape == (2, 32, 32)
    assert heat[0, 2, 2] == pytest.approx(1, abs=1e-4)
    assert heat[0, 29, 29] < 0.01
    assert heat[1, 29, 29] == pytest.approx(1, abs=1e-4)
    assert heat[1, 2, 2] < 0.01


def test_it_leaves_the_encoder_as_it_was():
    encoder = image_encoder("resnet10").train()
    pictures = torch.randn(2, 3, 64, 64)
    heat = gradcam(encoder, pictures, lambda features: features.amax(1), "layer3")
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    with pytest.raises(ValueError, match="layer must be one of layer1, layer2, layer3, layer4; got 'fc'"):
        gradcam(encoder, pictures, lambda features: features.amax(1), "fc")


def test_any_network_s_last_map_is_found():
    encoder = image_encoder("resnet10").eval().requires_grad_(False)
    pictures = torch.randn(2, 3, 64, 64)
    found = last_map(encoder, pictures)
    assert found is encoder.layer4[-1].relu
    by_name, by_module = (gradcam(encoder, pictures, lambda x: x[:, 0], layer) for layer in ("layer4", found))
    torch.testing.assert_close(by_name, by_module)
    tokens = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Flatten(2), nn.LayerNorm(16))
    with pytest.raises(ValueError, match="is one of tokens"):
        last_map(tokens, pictures)
