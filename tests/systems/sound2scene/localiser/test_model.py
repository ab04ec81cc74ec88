"""LVS: its loss by the formula, that it finds what sounds, and its maps' sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.networks.audio_video import ResNet18
from cmx_fast.systems.sound2scene.localiser.model import (
    Localiser,
    foreground,
    load_imagenet_resnet18,
    localisation_loss,
)
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe

PAPER = LocaliserRecipe()
TINY = LocaliserRecipe.preset("demo", width=8, seconds=0.5)


def test_sizes_are_lvs():
    with torch.device("meta"):
        model = Localiser(PAPER)
        assert model.encode_picture(torch.empty(2, 3, 224, 224)).shape == (2, 512, 14, 14)
        assert model.sound_net.maps(torch.empty(2, 1, 257, 670)).shape == (2, 512, 9, 21)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(22.3e6, rel=1e-2)


def test_features_have_unit_length():
    model = Localiser(TINY).eval()
    with torch.no_grad():
        out = model({"picture": torch.rand(2, 3, 64, 64), "wave": 0.1 * torch.randn(2, 5000)})
    torch.testing.assert_close(out["picture"].norm(dim=1), torch.ones(2, 4, 4))
    torch.testing.assert_close(out["sound"].norm(dim=1), torch.ones(2))


def test_loss_is_the_formula():
    look, sound = (F.normalize(torch.randn(*shape), dim=1) for shape in ((3, 6, 2, 2), (3, 6)))
    look, sound = look.double().requires_grad_(), sound.double().requires_grad_()

    def mean(values, weights):
        return (values * weights).sum() / weights.sum()

    total = 0.0
    for i in range(3):
        logits = []
        for j in range(3):
            a = (look[i] * sound[j][:, None, None]).sum(0).flatten()
            pos = torch.sigmoid((a - 0.65) / 0.03)
            logits.append(mean(a, pos))
            if i == j:
                easy = mean(a, 1 - torch.sigmoid((a - 0.4) / 0.03))
        ordered = torch.stack([logits[i], *(logits[j] for j in range(3) if j != i), easy]) / 0.07
        total = total + torch.logsumexp(ordered, 0) - ordered[0]
    loss = localisation_loss(look, sound, PAPER)
    torch.testing.assert_close(loss, total / 3)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (look, sound)), torch.autograd.grad(total / 3, (look, sound))
    )


def test_foreground_is_finite_wherever_the_cosines_are():
    for value in (-1.0, 0.0, 1.0):
        cosines = torch.full((4, 9), value)
        torch.testing.assert_close(foreground(cosines, PAPER), torch.full((4,), value))


def patches(generator):
    """Pictures of one coloured patch each in one of 4 x 4 places, its place (B,) and its colour's sound."""
    time = torch.arange(4000) / 16000
    pitches = torch.tensor([300, 900, 2500, 6000])
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])
    place = torch.randint(16, (4,), generator=generator)
    pictures = 0.4 + 0.1 * torch.rand(4, 3, 128, 128, generator=generator)
    for i, p in enumerate(place.tolist()):
        top, left = 32 * (p // 4), 32 * (p % 4)
        pictures[i, :, top : top + 32, left : left + 32] = colours[i, :, None, None]
    return {"picture": pictures, "wave": 0.5 * torch.sin(2 * torch.pi * pitches[:, None] * time)}, place


@pytest.fixture
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_learns_what_sounds_and_where(one_thread):
    """Colour decides the sound's pitch, and anything but the place is noise."""
    model = Localiser(LocaliserRecipe.preset("demo", width=8, seconds=0.25)).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 2e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        batch, _ = patches(generator)
        loss = model.losses(model(batch), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    best, hits = [], []
    for _ in range(10):
        batch, place = patches(generator)
        with torch.no_grad():
            look, sound = model.encode_picture(batch["picture"]), model.encode_sound(batch["wave"])
        agreement = torch.stack([model.agreement(look, s.expand(4, -1)) for s in sound], 1)
        best += (agreement.argmax(1) == torch.arange(4)).tolist()
        peak = torch.einsum("bdhw,bd->bhw", look, sound).flatten(1).argmax(1)
        x, y = (peak % 8 + 0.5) * 16, (peak // 8 + 0.5) * 16
        hits += (
            ((x - 32 * (place % 4) - 16).abs() < 32) & ((y - 32 * (place // 4) - 16).abs() < 32)
        ).tolist()
    assert sum(best) / 40 > 0.9
    assert sum(hits) / 40 > 0.6  # a window of twice the patch's side covers up to a quarter of the picture


def test_imagenet_weights_from_a_file(tmp_path):
    source, model = ResNet18(1000, channels=3), Localiser(LocaliserRecipe())
    torch.save(source.state_dict(), tmp_path / "r.pth")
    load_imagenet_resnet18(model, tmp_path / "r.pth")
    assert model.picture_net.layer4[1].conv2.weight.equal(source.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="does not fit ResNet-18"):
        load_imagenet_resnet18(Localiser(TINY), tmp_path / "r.pth")
    (tmp_path / "r.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not fit ResNet-18"):
        load_imagenet_resnet18(model, tmp_path / "r.pth")
    with pytest.raises(FileNotFoundError, match="there are no ResNet-18 weights"):
        load_imagenet_resnet18(model, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative": 0.9}, "negative must be at most positive = 0.65"),
        ({"softness": 0.0}, "softness must be above 0"),
    ],
)
def test_recipe_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        LocaliserRecipe.preset("demo", **changes)
