from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cmx_fast.systems.csir.baselines import Classifiers, DecayTime
from cmx_fast.systems.csir.dscmr import DSCMR
from cmx_fast.systems.csir.evaluation import MODELS
from cmx_fast.systems.csir.model import (
    CSIR,
    ImagePretraining,
    RT60Scale,
    SpeechEncoder,
    SpeechPretraining,
    image_encoder,
    load_places365,
)
from cmx_fast.systems.csir.recipe import CSIRRecipe

RECIPE = CSIRRecipe.preset("demo", image_size=32, crop_seconds=1.0, n_mels=128)
SPACES = 5


@pytest.fixture(scope="module")
def csir() -> CSIR:
    return CSIR(RECIPE, SPACES, image_encoder("resnet10"), SpeechEncoder(frames=RECIPE.frames))


def batch(rows: int = 6) -> dict[str, torch.Tensor]:
    return {
        "image": torch.randn(rows, 3, 32, 32),
        "logmel": torch.randn(rows, 128, RECIPE.frames),
        "space": torch.arange(rows) % SPACES,
        "rt60": torch.rand(rows),
    }


def test_speech_encoder_has_the_papers_size():
    encoder = SpeechEncoder()
    assert encoder.dim == 2432
    assert encoder(torch.randn(2, 128, 301)).shape == (2, 2432)
    with pytest.raises(ValueError, match=r"\(B, 128, 301\), got \(2, 128, 300\)"):
        encoder(torch.randn(2, 128, 300))
    with pytest.raises(ValueError, match="multiple of 32"):
        SpeechEncoder(n_mels=80)


def test_speech_encoder_standardises_each_mel_band():
    encoder = SpeechEncoder(frames=64).eval()
    mean, std = torch.randn(128) * 20, torch.rand(128) + 1
    x = torch.randn(1, 128, 64)
    expected = encoder(x)
    encoder.standardise(mean, std)
    torch.testing.assert_close(encoder(x * std[:, None] + mean[:, None]), expected, atol=1e-4, rtol=1e-4)


def test_image_encoders_give_365_logits():
    assert image_encoder("resnet10")(torch.randn(2, 3, 32, 32)).shape == (2, 365)
    assert (
        sum(p.numel() for p in image_encoder("resnet50").parameters()) == 24_255_917
    )  # torchvision's with fc 365
    with pytest.raises(ValueError, match="resnet34"):
        image_encoder("resnet34")


def test_csir_outputs(csir):
    outputs = csir(batch())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "image": (6, 64), "speech": (6, 64), "space": (6, SPACES)
    }  # fmt: skip


@pytest.mark.parametrize("model", MODELS.values())
def test_features_may_be_given_instead_of_pictures_and_speech(csir, model):
    it = model(RECIPE, SPACES, csir.image_encoder, csir.speech_encoder).eval()
    rows = batch()
    image, speech = it.features(rows)
    given = it({"image_features": image, "speech_features": speech})
    for name, value in it(rows).items():
        torch.testing.assert_close(given[name], value)
    torch.testing.assert_close(it.project_image(image), it.encode_image(rows["image"]))
    torch.testing.assert_close(it.project_speech(speech), it.encode_speech(rows["logmel"]))
    assert {id(p) for p in it.encoders()} < {id(p) for p in it.parameters()}
    csir.train()


def test_csir_loss_of_identical_features(csir):
    same = torch.ones(6, 64)
    losses = csir.losses({"image": same, "speech": same, "space": torch.zeros(6, SPACES)}, batch())
    assert losses["supcon"].item() == pytest.approx(
        math.log(2 * 6 - 1), abs=1e-5
    )  # any labels: 2N - 1 others
    assert losses["ce"].item() == pytest.approx(math.log(SPACES))
    assert losses["loss"].item() == pytest.approx(0.6 * math.log(SPACES) + 0.4 * math.log(11), abs=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_csir_cross_contrast_is_eq_7_on_speech_rows_and_image_columns(csir, reduction):
    recipe = CSIRRecipe.preset("demo", contrast="cross", supcon_reduction=reduction)
    model = CSIR(recipe, SPACES, csir.image_encoder, csir.speech_encoder)
    image, speech, space = torch.randn(6, 64), torch.randn(6, 64), torch.tensor([0, 1, 0, 2, 2, 2])
    losses = model.losses(
        {"image": image, "speech": speech, "space": torch.zeros(6, SPACES)}, {"space": space}
    )
    logits = F.normalize(speech) @ F.normalize(image).T / 0.07
    rows = [-(logits[i] - logits[i].logsumexp(0))[space == space[i]].mean() for i in range(6)]
    expected = torch.stack(rows).mean() if reduction == "mean" else torch.stack(rows).sum()
    torch.testing.assert_close(losses["supcon"], expected)


def test_speech_pretraining_losses():
    model = SpeechPretraining(RECIPE, SPACES)
    model.scale.mean.fill_(math.log(0.5))
    model.scale.std.fill_(math.log(2))
    rows = {"space": torch.tensor([0, 0, 1, 1]), "rt60": torch.tensor([0.5, 1.0, 2.0, 0.25])}
    outputs = {
        "space": torch.zeros(4, SPACES),
        "rt60": torch.tensor([0.0, 1.0, 2.0, 0.0]),
        "projection": torch.ones(4, 64),
    }
    losses = model.losses(outputs, rows)
    assert losses["rt60"].item() == pytest.approx(1 / 4)  # only the last is off, by one standard deviation
    assert losses["supcon"].item() == pytest.approx(math.log(3), abs=1e-5)
    assert losses["loss"].item() == pytest.approx(math.log(SPACES) + 1 / 4 + math.log(3), abs=1e-5)
    assert model(batch())["projection"].shape == (6, 64)


def test_rt60_is_learned_as_its_logarithm():
    scale = RT60Scale()
    seconds = torch.tensor([0.5, math.nan, 2.0, 0.0])
    scale.fit(seconds[:3])
    assert scale.mean.item() == pytest.approx(0, abs=1e-6)
    assert scale.std.item() == pytest.approx(math.log(4) / math.sqrt(2))
    torch.testing.assert_close(scale.seconds(torch.tensor([0.0])), torch.tensor([1.0]))
    right = (seconds.clamp_min(0.05).log() / scale.std).nan_to_num()
    assert scale.squared_error(right, seconds) == 0
    torch.testing.assert_close(scale.seconds(right)[[0, 2]], seconds[[0, 2]])


def test_an_unknown_rt60_is_left_out_of_the_loss():
    model = SpeechPretraining(RECIPE, SPACES)
    seconds = torch.tensor([0.5, math.nan, 2.0, math.nan])
    model.scale.fit(seconds)
    outputs = {
        "space": torch.zeros(4, SPACES),
        "rt60": torch.tensor([1.0, 2.0, 3.0, math.inf], requires_grad=True),
        "projection": torch.ones(4, 64),
    }
    rows = {"space": torch.tensor([0, 0, 1, 1]), "rt60": seconds}
    wanted = seconds.log() / model.scale.std
    losses = model.losses(outputs, rows)
    assert losses["rt60"].item() == pytest.approx(((1 - wanted[0]) ** 2 + (3 - wanted[2]) ** 2).item() / 2)
    losses["loss"].backward()
    assert outputs["rt60"].grad[1] == outputs["rt60"].grad[3] == 0
    none = model.losses(outputs, rows | {"rt60": torch.full((4,), math.nan)})
    assert none["rt60"] == 0 and none["loss"].isfinite()
    for known in (torch.full((3,), math.nan), torch.tensor([0.5, math.nan])):
        fresh = RT60Scale()
        fresh.fit(known)
        assert fresh.mean.isfinite() and fresh.std > 0


def test_image_pretraining_names_the_space():
    outputs = ImagePretraining(RECIPE, SPACES)(batch())
    assert outputs["space"].shape == (6, SPACES)


def test_dscmr_objective_written_out(csir):
    model = DSCMR(RECIPE, SPACES, csir.image_encoder, csir.speech_encoder)
    rows = batch(4)
    rows["space"] = torch.tensor([0, 1, 1, 3])
    outputs = {name: value.detach() for name, value in model(rows).items()}
    losses = model.losses(outputs, rows)
    v, s = F.normalize(outputs["image"]), F.normalize(outputs["speech"])
    labels = discrimination = invariance = 0.0
    for i in range(4):
        for modality in ("image", "speech"):
            target = F.one_hot(rows["space"][i], SPACES)
            labels += (outputs[f"{modality}_space"][i] - target).square().sum().sqrt().item() / 4
        invariance += (outputs["image"][i] - outputs["speech"][i]).square().sum().sqrt().item() / 4
        for j in range(4):
            for a, b in ((v, s), (v, v), (s, s)):
                theta = 0.5 * (a[i] @ b[j]).item()
                same = rows["space"][i] == rows["space"][j]
                discrimination += (math.log(1 + math.exp(theta)) - (theta if same else 0)) / 16
    assert losses["labels"].item() == pytest.approx(labels, rel=1e-5)
    assert losses["discrimination"].item() == pytest.approx(discrimination, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(labels + 1e-3 * discrimination + 0.1 * invariance, rel=1e-5)
    assert outputs["image"].shape == (4, 1024)


def test_classifiers_rank_by_the_probabilities_of_the_spaces(csir):
    model = Classifiers(RECIPE, SPACES, csir.image_encoder, csir.speech_encoder).eval()
    for side, width in (("image", 365), ("speech", csir.speech_encoder.dim)):
        embedded = getattr(model, f"project_{side}")(torch.randn(6, width))
        assert embedded.shape == (6, SPACES)
        torch.testing.assert_close(embedded.sum(1), torch.ones(6))
    outputs = {"image_space": torch.zeros(6, SPACES), "speech_space": torch.zeros(6, SPACES)}
    assert model.losses(outputs, batch())["loss"].item() == pytest.approx(2 * math.log(SPACES))


def test_rt60_alone_ranks_by_the_difference_of_the_estimates(csir):
    model = DecayTime(RECIPE, SPACES, csir.image_encoder, csir.speech_encoder).eval()
    model.scale.fit(torch.tensor([0.5, 2.0]))
    picture = model.project_image(torch.randn(1, 365))
    speech = model.project_speech(torch.randn(50, csir.speech_encoder.dim))
    estimates = [torch.atan2(rows[:, 1], rows[:, 0]) for rows in (picture, speech)]
    nearest = (estimates[0] - estimates[1]).abs().argsort()
    assert torch.equal(nearest, F.cosine_similarity(picture, speech).argsort(descending=True))
    rows = batch() | {"rt60": torch.tensor([0.5, 1.0, 2.0, math.nan, 1.0, 1.0])}
    exact = (rows["rt60"].log() / model.scale.std).nan_to_num()
    losses = model.losses({"image_rt60": exact, "speech_rt60": exact + 1}, rows)
    assert losses["image_rt60"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss"].item() == pytest.approx(1)


def test_projections_without_batch_norm(csir):
    model = CSIR(
        CSIRRecipe.preset("demo", standardise=False), SPACES, csir.image_encoder, csir.speech_encoder
    )
    features = torch.randn(4, 365) + 3
    torch.testing.assert_close(model.project_image(features), model.image_projector(features))
    assert not any("norm" in name for name, _ in model.named_buffers() if "encoder" not in name)


@pytest.fixture
def places(tmp_path):
    """A file in the Places365 project's form: names with "module.", no num_batches_tracked."""
    source = image_encoder("resnet10")
    weights = {f"module.{k}": v for k, v in source.state_dict().items() if "num_batches" not in k}
    file = tmp_path / "resnet_places365.pth.tar"
    torch.save(
        {"epoch": 90, "arch": "resnet10", "state_dict": weights, "best_prec1": torch.tensor(54.7)}, file
    )
    return file, weights, source


def test_places365_weights_load(places):
    file, _, source = places
    encoder = image_encoder("resnet10")
    load_places365(encoder, file)
    for name, value in encoder.named_parameters():
        torch.testing.assert_close(value, source.get_parameter(name))


def test_places365_errors_name_what_is_wrong(places, tmp_path):
    file, weights, _ = places
    encoder = image_encoder("resnet10")
    with pytest.raises(FileNotFoundError, match="nowhere.pth.tar"):
        load_places365(encoder, tmp_path / "nowhere.pth.tar")
    with pytest.raises(ValueError, match="another architecture"):
        load_places365(image_encoder("resnet18"), file)
    for contents, message in (
        (weights, "no 'state_dict'"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "begin with 'module.'"),
    ):
        torch.save(contents, file)
        with pytest.raises(ValueError, match=message):
            load_places365(encoder, file)
    file.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_places365(encoder, file)


def test_what_batch_norm_learns_in_training_fits_evaluation():
    """With the reference's dropout before its pools, features in evaluation would be a good deal smaller."""

    def shift(dropout):
        torch.manual_seed(0)
        encoder = SpeechEncoder(32, 64, cnn_dropout=dropout)
        speech = torch.randn(16, 32, 64)
        for _ in range(100):
            training = encoder.cnn(speech[:, None]).mean()
        return (encoder.eval().cnn(speech[:, None]).mean() / training - 1).abs().item()

    with torch.no_grad():
        assert shift(CSIRRecipe().cnn_dropout) < 0.03
        assert shift(0.3) > 0.3
