"""Sound2Scene's alignment: the sizes of its encoders, and its loss where it can be worked out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.models.sound2scene import LOSSES, PictureEncoder, SoundEncoder, alignment_loss, load_swav


def test_sizes_are_those_of_the_published_encoders():
    with torch.device("meta"):
        sound, picture = SoundEncoder(), PictureEncoder()
        assert sound.encode(torch.empty(2, 1, 257, 1004)).shape == (2, 2048)
        assert picture(torch.empty(2, 3, 256, 256)).shape == (2, 2048)
    assert sum(p.numel() for p in sound.parameters()) == pytest.approx(12.22e6, rel=1e-3)


def test_any_wave_has_features():
    encoder = SoundEncoder().eval()
    with torch.no_grad():
        for samples in (3200, 200_000):
            z = encoder(0.1 * torch.randn(1, samples))
            assert z.shape == (1, 2048) and (z >= 0).all() and z.isfinite().all()
        assert encoder(torch.zeros(1, 16000)).isfinite().all()
        assert (SoundEncoder(positive=False).eval()(torch.randn(1, 3200)) < 0).any()


def simplex(count):
    """Unit vectors of equal, largest mutual distance."""
    centred = torch.eye(count, dtype=torch.float64) - 1 / count
    return F.normalize(centred, dim=1)


def test_loss_where_it_can_be_worked_out_at_the_papers_batch():
    same = torch.ones(64, 16, dtype=torch.float64)
    assert alignment_loss(same, same).item() == pytest.approx(math.log(64))  # 4.159
    eye = torch.eye(64, dtype=torch.float64)
    assert alignment_loss(eye, eye).item() == pytest.approx(2.792, abs=5e-4)
    assert alignment_loss(simplex(64), simplex(64)).item() == pytest.approx(2.782, abs=5e-4)
    assert alignment_loss(eye, eye, "cosine").item() == pytest.approx(3.185, abs=5e-4)
    assert alignment_loss(3 * eye, 5 * eye).item() == pytest.approx(2.792, abs=5e-4)  # lengths do not count
    assert alignment_loss(eye, 0 * eye, "regression").item() == pytest.approx(1 / 64)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_their_formulas(kind):
    sound, picture = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    a, v = F.normalize(sound, dim=1), F.normalize(picture, dim=1)
    logits = a @ v.T if kind == "cosine" else -(a[:, None] - v[None]).norm(dim=2)
    rows, columns = (F.cross_entropy(x, torch.arange(9)) for x in (logits, logits.T))
    expected = {
        "l2": (rows + columns) / 2, "l2 one way": rows, "cosine": (rows + columns) / 2,
        "regression": (sound - picture).square().mean(),
    }[kind]  # fmt: skip
    leaf, fixed = sound.clone().requires_grad_(), picture.clone().requires_grad_()
    loss = alignment_loss(leaf, fixed, kind)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert leaf.grad.abs().sum() > 0 and fixed.grad is None


def test_the_picture_encoder_stays_as_it_is():
    encoder = PictureEncoder().train()
    assert not encoder.training and not encoder.resnet.bn1.training
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(2, 3), "l1"), "kind must be one of 'l2'"),
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(2, 4)), "must have the same shape"),
        (lambda: PictureEncoder()(torch.rand(3, 40, 60)), r"picture must have shape \(B, 3, H, W\)"),
        (lambda: SoundEncoder()(torch.zeros(1, 0)), "no samples"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
