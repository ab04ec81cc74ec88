"""Sound2Scene's alignment: the sizes of its encoders, and its loss where it can be worked out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.networks.audio_encoders import AudioEncoder, VGGish
from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.systems.sound2scene.checkpoints import load_sound_encoder
from cmx_fast.systems.sound2scene.controls import change_volume, edit, interpolate, invert, mix
from cmx_fast.systems.sound2scene.evaluation import fitting_pictures
from cmx_fast.systems.sound2scene.model import (
    LOSSES,
    PretrainedSoundEncoder,
    Sound2Scene,
    SoundEncoder,
    alignment_loss,
)
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe


def test_sizes_are_those_of_the_published_encoders():
    with torch.device("meta"):
        sound = SoundEncoder()
        assert sound.encode(torch.empty(2, 1, 257, 1004)).shape == (2, 2048)
        assert sound.resnet.maps(torch.empty(2, 1, 257, 1004)).shape == (2, 512, 9, 32)
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
    assert alignment_loss(3 * eye, 0 * eye, "regression").item() == pytest.approx(3)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_their_formulas(kind):
    sound, picture = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    a, v = F.normalize(sound, dim=1), F.normalize(picture, dim=1)
    logits = a @ v.T if kind == "cosine" else -(a[:, None] - v[None]).norm(dim=2)
    rows, columns = (F.cross_entropy(x, torch.arange(9)) for x in (logits, logits.T))
    expected = {
        "l2": (rows + columns) / 2, "l2 one way": rows, "cosine": (rows + columns) / 2,
        "regression": (sound - picture).norm(dim=1).mean(),
    }[kind]  # fmt: skip
    leaf, fixed = sound.clone().requires_grad_(), picture.clone().requires_grad_()
    loss = alignment_loss(leaf, fixed, kind)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert leaf.grad.abs().sum() > 0 and fixed.grad is None


def test_published_names_and_narrow_encoders():
    with torch.device("meta"):
        names = SoundEncoder().resnet.state_dict()
        assert names["conv1.weight"].shape == (64, 1, 7, 7) and names["fc.weight"].shape == (2048, 512)
        assert names["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
        narrow = SoundEncoder(32, width=8, seconds=3.0)
        assert narrow.encode(torch.empty(2, 1, 257, 299)).shape == (2, 32)
    assert SoundEncoder(4, width=8, seconds=3.0).standardised_spectrogram(torch.rand(1, 700)).shape == (
        1,
        1,
        257,
        299,
    )


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return Sound2Scene(PictureEncoder("small"), SoundEncoder(128, 8, 0.5), Generator(64, 8, 10, 128, 6))


def test_a_system_makes_pictures(system):
    sound, picture = (
        system.encode_sound(0.1 * torch.randn(2, 9000)),
        system.encode_picture(torch.rand(2, 3, 70, 50)),
    )
    for features in (sound, picture):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    noise = system.noise(2, seed=3)
    assert noise.equal(system.noise(2, seed=3)) and not noise.equal(system.noise(2))
    made = system.generate(sound, noise)
    assert made.shape == (2, 3, 64, 64) and made.min() >= 0 and made.max() <= 1
    assert not system.training and not made.requires_grad
    torch.testing.assert_close(system.generate(5 * sound, noise), made)  # lengths do not count


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(100), r"wave must be float \(B, samples\), got torch.float32 of shape \(100,\)"),
        (torch.zeros(1, 100, dtype=torch.int16), "wave must be float"),
        (torch.full((1, 100), math.nan), "NaN or infinity"),
        (torch.zeros(1, 0), "no samples"),
    ],
)
def test_a_system_refuses(system, wave, message):
    with pytest.raises(ValueError, match=message):
        system.encode_sound(wave)


def test_a_silent_wave_has_features(system):
    assert system.encode_sound(torch.zeros(1, 3200)).isfinite().all()


def test_volume():
    wave = torch.tensor([0.05, -0.2])
    torch.testing.assert_close(change_volume(wave, -20), wave / 10)
    torch.testing.assert_close(change_volume(wave, 20), torch.tensor([0.5, -1.0]))  # clipped
    assert change_volume(wave, 0).equal(wave)


def test_mixing_repeats_the_shorter_and_clips():
    mixed = mix(torch.tensor([0.1, 0.2, 0.3, 0.9, 0.0]), torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(mixed, torch.tensor([0.2, 0.4, 0.4, 1.0, 0.1]))
    assert mix(torch.tensor([0.5])).tolist() == [0.5]
    there = mix(torch.empty(5, device="meta"), torch.empty(2, dtype=torch.float64, device="meta"))
    assert (there.device.type, there.dtype, there.shape) == ("meta", torch.float64, (5,))
    for wrong in ((torch.zeros(2), torch.zeros(2, device="meta")), (torch.zeros(2, dtype=torch.int16),)):
        with pytest.raises(ValueError, match=r"mix takes float waves in \[-1, 1\] on one device, got torch"):
            mix(*wrong)
    with pytest.raises(ValueError, match=r"mix takes waves \(samples,\), at least one"):
        mix()
    with pytest.raises(ValueError, match="mix takes waves"):
        mix(torch.zeros(0))


def test_interpolation_ends_where_it_should():
    picture, sound = (F.normalize(torch.randn(2, 5), dim=1) for _ in "vs")
    torch.testing.assert_close(interpolate(picture, sound, 1.0), picture)
    torch.testing.assert_close(interpolate(picture, sound, 0.0), sound)
    middle = interpolate(picture, sound, 0.3)
    torch.testing.assert_close(middle, F.normalize(0.3 * picture + 0.7 * sound, dim=1))
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]"):
        interpolate(picture, sound, 1.2)


def test_editing_moves_by_the_difference():
    picture, to, since = (F.normalize(torch.randn(2, 5), dim=1) for _ in "vab")
    torch.testing.assert_close(edit(picture, to, since, 0.0), picture)
    torch.testing.assert_close(edit(picture, to, since, 2.0), F.normalize(picture + 2 * (to - since), dim=1))


def test_inversion_finds_what_a_picture_was_made_of(system):
    generator = system.generator
    with torch.no_grad():  # fresh weights hardly look at noise and features
        for name, value in generator.named_parameters():
            if "gain" in name or name.endswith("bias"):
                value.mul_(3).add_(0.3 * torch.randn_like(value))
        h, z = F.normalize(torch.randn(1, 128), dim=1), system.noise(1, seed=1)
        wanted = system.generate(h, z)
        start, noise = F.normalize(torch.randn(1, 128), dim=1), system.noise(1, seed=2)
        before = (system.generate(start, noise) - wanted).square().mean()
    steps = []
    found, noise, error = invert(
        generator,
        wanted,
        start,
        noise,
        steps=40,
        perception=system.perceive,
        progress=lambda i, e: steps.append(e),
    )
    assert error.shape == (1,) and error.item() < 0.5 * before and len(steps) == 40
    torch.testing.assert_close((system.generate(found, noise) - wanted).square().mean(), error[0])
    with pytest.raises(ValueError, match=r"picture must have shape \(1, 3, 64, 64\)"):
        invert(generator, wanted[:, :, :32], start, noise)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "l1"}, "loss must be one of l2, l2 one way, cosine, regression; got 'l1'"),
        ({"heard": 20.0}, r"heard must be in \[0, seconds = 3.0\]"),
        ({"moments": 0}, "moments must be at least 1"),
        ({"size": 3}, "the recipe has no size"),
    ],
)
def test_recipe_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        Sound2SceneRecipe.preset("demo", **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(2, 3), "l1"), "kind must be one of 'l2'"),
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(2, 4)), "must have the same shape"),
        (lambda: SoundEncoder()(torch.zeros(1, 0)), "no samples"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_regression_that_is_exact_has_a_gradient():
    sound = torch.ones(3, 4, requires_grad=True)
    alignment_loss(sound, torch.ones(3, 4), "regression").backward()
    assert sound.grad.eq(0).all()


def test_the_authors_sound_encoder_loads_by_name(tmp_path):
    file = tmp_path / "sound2scene.pth"
    encoder = SoundEncoder(20, 8).eval()
    state = {f"audnet.{name}": value for name, value in encoder.resnet.state_dict().items()}
    for stored in (state, {f"module.{name}": value for name, value in state.items()}):
        torch.save(stored, file)
        loaded = load_sound_encoder(file, 20).eval()
        wave = 0.1 * torch.randn(1, 20_000)
        assert loaded(wave).equal(encoder(wave))
        assert loaded.seconds == 10
        assert loaded.positive
    with pytest.raises(ValueError, match="gives features of width 20, the picture encoder of width 2048"):
        load_sound_encoder(file, 2048)


def test_other_files_than_the_authors_say_what_does_not_fit(tmp_path):
    file = tmp_path / "sound2scene.pth"
    state = {f"audnet.{name}": value for name, value in SoundEncoder(20, 8).resnet.state_dict().items()}
    del state["audnet.layer1.0.bn1.weight"]
    state["audnet.conv1.weight"] = torch.zeros(8, 3, 7, 7)
    state["audnet.avgpool.centroids"] = torch.zeros(16, 64)
    torch.save(state, file)
    with pytest.raises(ValueError, match="does not fit Sound2Scene's sound encoder") as caught:
        load_sound_encoder(file, 20)
    for part in (
        "lacks layer1.0.bn1.weight", "has avgpool.centroids", r"conv1.weight is (8, 3, 7, 7), not (8, 1, 7, 7)",
        "looks like a ResNet of [2, 2, 2, 2] basic blocks",
    ):  # fmt: skip
        assert part in str(caught.value)
    torch.save({"a": 1}, file)
    with pytest.raises(ValueError, match="holds no weights by name"):
        load_sound_encoder(file, 20)
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        load_sound_encoder(tmp_path / "none.pth", 20)


def test_a_layer_on_a_pretrained_audio_encoder():
    torch.manual_seed(0)
    audio = AudioEncoder("vggish", VGGish())
    encoder = PretrainedSoundEncoder(audio, 12, seconds=1.5)
    waves = 0.1 * torch.randn(6, 9000)
    z = encoder(waves)
    assert z.shape == (6, 12)
    assert (z >= 0).all()
    z.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == [
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert not audio.training
    encoder.eval()
    whole = waves.repeat(1, 3)[:, :24_000]
    assert encoder(waves).equal(encoder(whole))
    with pytest.raises(ValueError, match=r"seconds must be at least 0.975 for vggish; got 0.5"):
        PretrainedSoundEncoder(audio, 12, seconds=0.5)


def test_row_c_has_the_generators_memory():
    generator = Generator(64, 8, 10, 128, 6)
    numbers = sum(p.numel() for p in generator.parameters())
    assert fitting_pictures(generator) == 4 * numbers // (3 * 64 * 64)
