"""CMAC: its encoders' sizes, and its losses against the formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.video import r2plus1d_18

from cmx_fast import reference
from cmx_fast.networks.audio_video import Conv3d, R2Plus1D, ResNet9
from cmx_fast.systems.cmac.model import CMAC, OBJECTIVES
from cmx_fast.systems.cmac.recipe import CMACRecipe

TINY = {
    "size": 32,
    "short_side": 32,
    "frames": 4,
    "width": 8,
    "audio_width": 8,
    "filters": 16,
    "embedding": 8,
}


def tiny(objective="cmac", **changes):
    torch.manual_seed(0)
    return CMAC(CMACRecipe.preset("demo", **TINY | changes), objective)


def batch(count=4, two=False):
    made = {
        "clip": torch.randn(count, 3, 4, 32, 32),
        "wave": 0.1 * torch.randn(count, 12000),
        "index": torch.arange(count),
    }
    if two:
        made |= {"clip2": torch.randn(count, 3, 4, 32, 32), "wave2": 0.1 * torch.randn(count, 12000)}
    return made


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_papers_encoders_have_its_sizes():
    with torch.device("meta"):
        video, audio = R2Plus1D(), ResNet9()
        assert video(torch.empty(1, 3, 32, 128, 128)).shape == (1, 512, 4, 8, 8)
        assert audio(torch.empty(1, 1, 257, 99)).shape == (1, 512, 9, 4)
        assert R2Plus1D(last_stride=1)(torch.empty(1, 3, 32, 128, 128)).shape == (1, 512, 8, 16, 16)
        theirs = {
            name: w.shape for name, w in r2plus1d_18().state_dict().items() if not name.startswith("fc")
        }
    assert {name: w.shape for name, w in video.state_dict().items()} == theirs
    assert parameters(video) == pytest.approx(31.30e6, rel=1e-3)
    assert parameters(audio) == pytest.approx(4.90e6, rel=1e-2)


def test_remoulded_loss_is_that_of_equation_7_with_banks_alone():
    model = tiny(bank=6, bank_batch=False)
    b = batch()
    before = [model.video_bank.rows.clone(), model.audio_bank.rows.clone()]
    outputs = model(b)
    losses = model.losses(outputs, b)
    t, expected = model.recipe.temperature, 0.0
    for query, key in (("video", "audio key"), ("audio", "video key")):
        q, k = outputs[query], outputs[key]
        logits = torch.cat([(q * k).sum(1, keepdim=True), *(q @ rows.T for rows in before)], 1) / t
        expected += F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(losses["across"], expected)
    attention = losses["video attention"] + losses["audio attention"]
    torch.testing.assert_close(losses["loss"], expected + 1.5 * attention)
    # The keys join the banks after the loss.
    assert model.video_bank.rows[-4:].equal(outputs["video key"]) and model.audio_bank.ids[-4:].equal(
        b["index"]
    )


@pytest.mark.parametrize("within", [True, False])
def test_the_batchs_other_samples_are_negatives_beside_the_banks(within):
    model, b = tiny("contrast", bank=6, within_negatives=within), batch()
    rows = {"video": model.video_bank.rows.clone(), "audio": model.audio_bank.rows.clone()}
    outputs = model(b)
    t, expected = model.recipe.temperature, 0.0
    for own, other in (("video", "audio"), ("audio", "video")):
        q, k = outputs[own], outputs[f"{other} key"]
        logits = [q @ k.T, q @ rows[other].T]
        if within:
            logits += [(q @ q.T).masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf), q @ rows[own].T]
        expected += F.cross_entropy(torch.cat(logits, 1) / t, torch.arange(4))
    torch.testing.assert_close(model.losses(outputs, b)["across"], expected)


def test_parts_of_a_shuffled_batch_have_their_own_statistics():
    model, b = tiny("contrast", bank=6, key_splits=2, batch=4, dropout=0.0), batch(8)
    torch.manual_seed(3)
    keys = model.keys_of("video", b["clip"])
    torch.manual_seed(3)
    first, second = torch.randperm(8).split(4)
    for part in (first, second):
        torch.testing.assert_close(keys[part], model.keys["video"](b["clip"][part])[3])
    assert not first.equal(torch.arange(4))
    whole = model.keys["video"](b["clip"])[3]
    assert (keys - whole).abs().max() > 1e-3
    model.eval()
    torch.testing.assert_close(model.keys_of("video", b["clip"]), model.keys["video"](b["clip"])[3])


def test_the_age_of_the_banks_keys_is_logged():
    model, b = tiny("contrast", bank=10), batch()
    ages = [float(model.losses(model(b), b)["bank age"]) for _ in range(4)]
    # Keys of 4, then 8, then all 10 places: four of each of the last two steps, and two of the one before.
    assert ages == pytest.approx([0, 1, 1.5, 1.8])


def test_without_banks_the_batch_gives_the_negatives():
    model, b = tiny("contrast", bank=0), batch()
    outputs = model(b)
    video, audio, t = outputs["video"], outputs["audio"], model.recipe.temperature
    expected = 0.0
    for own, other in ((video, audio), (audio, video)):
        within = (own @ own.T / t).masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)
        expected += F.cross_entropy(torch.cat([own @ other.T / t, within], 1), torch.arange(4))
    torch.testing.assert_close(model.losses(outputs, b)["loss"], expected)
    plain = tiny("contrast", bank=0, within_negatives=False).losses(outputs, b)["loss"]
    torch.testing.assert_close(
        plain, 2 * reference.info_nce(video, audio, torch.tensor(1 / t), symmetric=True, reduction="mean")
    )


def test_consistency_teaches_the_saliency_heads_and_not_the_filters():
    model, b = tiny("attention"), batch()
    outputs = model(b)
    model.losses(outputs, b)["loss"].backward()
    assert model.video_saliency[0].weight.grad.abs().sum() > 0
    assert model.video.encoder.stem[0].weight.grad.abs().sum() > 0  # through the prediction
    assert model.video.transform[0].weight.grad is None
    taught = tiny("attention", teach_features=True)
    taught.losses(taught(b), b)["loss"].backward()
    assert taught.video.transform[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bank", [0, 6])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_row_of_the_ablation_learns_what_it_should(objective, bank):
    model = tiny(objective, bank=bank)
    b = batch(two=model.two_clips)
    losses = model.losses(model(b), b)
    losses["loss"].backward()
    terms = {"across": {"across"}, "within": {"within"}, "attention": {"video attention", "audio attention"}}
    ages = {"bank age"} if model.keys is not None else set()
    assert set(losses) == {"loss"}.union(ages, *(terms[name] for name in OBJECTIVES[objective]))
    assert losses["loss"].isfinite() and (model.keys is None) == (bank == 0 or objective == "attention")
    assert all(p.grad is None for p in (model.keys.parameters() if model.keys else ()))


def test_positives_within_the_modality():
    model = tiny("cmac", bank=6, within_positives=True, bank_batch=False)
    b = batch(two=True)
    outputs, banks = (
        model(b),
        {"video": model.video_bank.rows.clone(), "audio": model.audio_bank.rows.clone()},
    )
    losses, t, expected = model.losses(outputs, b), model.recipe.temperature, 0.0
    for name in ("video", "audio"):
        q, k = outputs[name], outputs[f"{name} key2"]
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ banks[name].T], 1) / t
        expected += F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(losses["within"], expected)


def test_motion_alone_is_seen():
    moving, still = (tiny(frame_channels=6, frame_motion=motion).video.encoder for motion in (True, False))
    maps, place = torch.randn(3, 6, 8, 2, 2), torch.randn(3, 6, 1, 2, 2)
    torch.testing.assert_close(moving(maps), moving(maps + place), rtol=1e-3, atol=1e-4)
    assert (still(maps) - still(maps + place)).abs().max() > 0.1


def test_keys_follow_slowly():
    model = tiny(bank=6, momentum=0.75)
    key, query = model.keys["video"].encoder.stem[0].weight, model.video.encoder.stem[0].weight
    assert key.equal(query)
    before = key.clone()
    with torch.no_grad():
        query.add_(1)
    model.update_keys()
    torch.testing.assert_close(key, before + 0.25)


def test_a_recordings_own_keys_are_no_negatives():
    model, b = tiny("contrast", bank=6), batch()
    outputs = model(b)
    model.losses(outputs, b)
    assert len(model.video_bank.without(b["index"])) == 2  # of six rows these four are the recordings' own
    own = model.losses(outputs, b)["loss"]
    others = model.losses(outputs, b | {"index": b["index"] + 100})["loss"]
    assert others > own + 1


def test_attention_maps_have_the_features_sizes():
    maps = tiny().eval().attend(*(batch()[name] for name in ("clip", "wave")))
    assert maps["video guided"].shape == maps["video predicted"].shape == (4, 1, 4, 4)
    assert maps["audio guided"].shape == maps["audio predicted"].shape
    assert all(((value >= 0) & (value <= 1)).all() for value in maps.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "deep"}, "head must be one of mlp, linear, shared; got 'deep'"),
        ({"size": 40}, "size must be a multiple of 16"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\); got 1.0"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"batch": 8, "key_splits": 5}, "key_splits must be at most 4"),
        ({"window": (0.5, 0.0, 0.6, 1.0)}, "window must be left, top, width and height"),
        ({"lamda": 2}, "the recipe has no lamda"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        CMACRecipe.preset("demo", **changes)
    with pytest.raises(ValueError, match="objective must be one of single, attention, contrast, cmac"):
        tiny("both")


@pytest.mark.parametrize(("kernel", "padding"), [((3, 1, 1), (1, 0, 0)), ((3, 3, 3), (1, 1, 1))])
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_gradients_read_no_stale_memory(kernel, padding, stride):
    convolution = Conv3d(28, 16, kernel, stride=(stride, 1, 1), padding=padding, bias=False)
    x = torch.randn(6, 28, 2, 8, 8)
    expected = torch.nn.Conv3d.forward(convolution, x)
    torch.testing.assert_close(convolution(x), expected)
    for _ in range(5):
        stale = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in (5_000, 50_000, 200_000)]
        del stale
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            convolution(x).float().square().sum().backward()
        assert convolution.weight.grad.isfinite().all()
