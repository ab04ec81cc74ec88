"""Picture encoders: SwAV's weights from a file, a fixed network, and the small one that learns without labels."""

from __future__ import annotations

import pytest
import torch

from cmx_fast.networks.picture_encoder import PictureEncoder, load_swav
from cmx_fast.systems.sound2scene.icgan.pretraining import PictureContrast


@pytest.mark.parametrize(("kind", "width", "size"), [("resnet50", 2048, 256), ("small", 128, 64)])
def test_features_of_any_picture(kind, width, size):
    with torch.device("meta"):
        encoder = PictureEncoder(kind)
        assert encoder(torch.empty(2, 3, 40, 60)).shape == (2, width)
        assert (encoder.width, encoder.size) == (width, size)


@pytest.mark.parametrize("kind", ["resnet50", "small"])
def test_the_picture_encoder_stays_as_it_is(kind):
    encoder = PictureEncoder(kind).train()
    assert not encoder.training and not any(module.training for module in encoder.modules())
    assert not encoder(torch.rand(1, 3, 40, 60).requires_grad_()).requires_grad


def test_swav_weights_from_a_file(tmp_path):
    encoder, other, file = PictureEncoder(), PictureEncoder(), tmp_path / "swav.pth.tar"
    state = {f"module.{name}": value for name, value in encoder.resnet.state_dict().items()}
    torch.save(state | {"module.prototypes.weight": torch.zeros(3, 4)}, file)
    load_swav(other, file)
    assert other.resnet.layer4[2].conv3.weight.equal(encoder.resnet.layer4[2].conv3.weight)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match=r"has no 'module.conv1.weight' \(found: state_dict\)"):
        load_swav(other, file)
    torch.save(state | {"module.conv1.weight": torch.zeros(8, 3, 7, 7)}, file)
    with pytest.raises(ValueError, match="does not fit ResNet-50"):
        load_swav(other, file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable PyTorch checkpoint"):
        load_swav(other, file)
    with pytest.raises(FileNotFoundError, match="no SwAV weights at"):
        load_swav(other, tmp_path / "none.pth")


def test_contrast_pulls_two_views_together():
    encoder = PictureEncoder("small")
    contrast = PictureContrast(encoder).train()
    optimizer = torch.optim.AdamW(contrast.parameters(), 2e-3)
    pictures = torch.rand(8, 3, 1, 1) + 0.2 * torch.rand(8, 3, 64, 64)
    losses = []
    for _ in range(6):
        batch = {"view0": pictures, "view1": pictures + 0.05 * torch.rand(8, 3, 64, 64)}
        loss = contrast.losses(contrast(batch), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    # What was trained is the encoder's own network.
    assert encoder.resnet is contrast.network
    assert encoder.requires_grad_(False).eval()(pictures).shape == (8, 128)


def test_refuses():
    with pytest.raises(ValueError, match="kind must be one of resnet50, small; got 'vit'"):
        PictureEncoder("vit")
    with pytest.raises(ValueError, match=r"picture must have shape \(B, 3, H, W\)"):
        PictureEncoder("small")(torch.rand(3, 40, 60))
