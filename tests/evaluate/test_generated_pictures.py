"""Figures of generated pictures, cached features, and what a control study sees."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchmetrics", reason="needs the evaluate extra")
pytest.importorskip("scipy", reason="needs the test extra")

from PIL import Image
from scipy import linalg
from torch import nn
from torchvision.transforms.functional import to_pil_image

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.evaluate import frame_classifier, generated_pictures
from cmx_fast.evaluate.frame_classifier import probabilities, train_classifier
from cmx_fast.evaluate.generated_pictures import (
    ClipJudge,
    Networks,
    frechet_distance,
    inception_networks,
    inception_score,
    recall,
    statistics,
)
from cmx_fast.networks.clip_weights import default_model
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.systems.sound2scene.control_study import BALANCES, scene_pairs, study
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.sound_features import own_rank

MEANS = Networks("means", lambda p: p.mean((2, 3)), lambda p: 8 * p.mean((2, 3)), 3, "")


def test_frechet_distance_is_the_formula():
    real, made = torch.rand(50, 3, 4, 4), 0.5 * torch.rand(70, 3, 4, 4)
    x, y = (p.double().mean((2, 3)).numpy() for p in (real, made))
    root = linalg.sqrtm(_cov(x) @ _cov(y)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (_cov(x) + _cov(y) - 2 * root).trace()
    of_real = statistics(MEANS, real)
    assert frechet_distance(MEANS, of_real, made) == pytest.approx(expected, rel=1e-4)
    bytes_ = (255 * made).round().byte()
    assert frechet_distance(MEANS, of_real, bytes_) == pytest.approx(expected, rel=1e-2)
    assert frechet_distance(MEANS, of_real, real) == pytest.approx(0, abs=1e-6)


def test_statistics_of_real_pictures_are_kept(tmp_path, capsys):
    real, made, file = torch.rand(50, 3, 4, 4), torch.rand(70, 3, 4, 4), tmp_path / "new" / "statistics.pt"
    calls = []

    def features(pictures):
        calls.append(len(pictures))
        return pictures.mean((2, 3))

    networks = replace(MEANS, features=features)
    first = statistics(networks, real, file)
    again = statistics(networks, real, file)
    assert calls == [50]  # once
    assert frechet_distance(networks, again, made) == frechet_distance(networks, first, made)
    assert statistics(networks, made, file).count == 70  # other pictures
    assert statistics(replace(networks, fingerprint="other"), made, file).count == 70
    assert calls[-3:] == [6, 64, 6] and capsys.readouterr().err == ""
    file.write_bytes(b"nothing")
    statistics(networks, real, file)
    assert "is not a readable checkpoint" in capsys.readouterr().err


def _cov(x):
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def test_inception_score_is_the_formula_and_the_same_twice():
    pictures = torch.rand(40, 3, 4, 4)
    p = (8 * pictures.mean((2, 3))).softmax(1)
    expected = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp().item()
    before = torch.random.get_rng_state()
    assert inception_score(MEANS, pictures) == pytest.approx(expected, rel=1e-5)
    assert torch.random.get_rng_state().equal(before)
    many = torch.rand(600, 3, 2, 2)
    assert inception_score(MEANS, many) == inception_score(MEANS, many)


def test_recall():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert recall(scores, torch.tensor([0, 1]), 1) == 0.5
    assert recall(scores, torch.tensor([1, 1]), 2) == 1.0
    assert recall(scores, torch.tensor([2, 0]), 5) == 1.0


def test_own_rank():
    gallery = F.normalize(torch.randn(2000, 16), dim=1)
    assert own_rank(gallery, gallery).eq(0).all()
    assert own_rank(gallery[[1, 0]], gallery[:2]).tolist() == [1, 1]


def test_inception_weights_from_a_file(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        fresh = extractor("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(fresh.state_dict(), tmp_path / "inception.pth")
    networks, pictures = inception_networks(tmp_path / "inception.pth"), torch.rand(2, 3, 40, 40)
    expected = fresh((255 * pictures).round().byte())
    assert networks.features(pictures).shape == (2, 2048) and networks.width == 2048
    torch.testing.assert_close(networks.features(pictures), expected[0])
    torch.testing.assert_close(networks.logits(pictures), expected[1])
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit torch-fidelity's Inception"):
        inception_networks(tmp_path / "other.pth")
    torch.save({"a": Harmful(tmp_path / "ran")}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match="does not fit torch-fidelity's Inception"):
        inception_networks(tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="there are no Inception weights"):
        inception_networks(tmp_path / "none.pth")


class Recorder(nn.Module):
    """A network that notes the device that it and its inputs are brought to, and answers on the CPU."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.places = []

    def to(self, device):
        self.places.append(str(device))
        return self

    def forward(self, pictures):
        self.places.append(pictures.device.type)
        return torch.ones(len(pictures), 2048), torch.ones(len(pictures), 1008)

    def encode_image(self, pictures):
        return self(pictures)[0]

    encode_text = encode_image


def test_published_networks_measure_on_the_device_that_is_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    pictures = torch.rand(2, 3, 40, 40)
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    made = []
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3",
        lambda *arguments, **options: made.append(Recorder()) or made[-1],
    )
    assert inception_networks(file, "meta").features(pictures).device.type == "cpu"
    assert made[0].places == ["meta", "meta"]
    clip = Recorder()
    package = SimpleNamespace(
        create_model_and_transforms=lambda *arguments, **options: (clip, None, None),
        get_model_preprocess_cfg=lambda network: {"size": 32, "mean": [0.5] * 3, "std": [0.2] * 3},
        get_tokenizer=lambda model: lambda texts: torch.zeros(len(texts), 77, dtype=torch.long),
    )
    monkeypatch.setattr(generated_pictures, "check_model", lambda model, weights: package)
    scores = ClipJudge("any", file, ["rain", "dog"], device="meta").scores(pictures)
    assert scores.shape == (2, 2) and scores.device.type == "cpu"
    assert clip.places == ["meta", "meta", "meta"]  # itself, the texts, the pictures


class Harmful:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_clip_from_a_file(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    clip, _, transform = open_clip.create_model_and_transforms("tiny-clip")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    names = ["dog_barking", "rain"]
    judge = ClipJudge("tiny-clip", tmp_path / "clip.pt", names, prompt="a photo of {}")
    picture = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        image = clip.eval().encode_image(transform(to_pil_image(picture))[None])
        text = clip.encode_text(
            open_clip.get_tokenizer("tiny-clip")(["a photo of dog barking", "a photo of rain"])
        )
    expected = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    torch.testing.assert_close(judge.scores(picture[None]), expected, rtol=1e-4, atol=1e-5)
    bare = ClipJudge("tiny-clip", tmp_path / "clip.pt", names)
    assert not torch.allclose(bare.scores(picture[None]), expected, atol=1e-6)
    same = ClipJudge("tiny-clip", tmp_path / "clip.pt", ["a photo of dog barking", "a photo of rain"])
    assert same.scores(picture[None]).equal(judge.scores(picture[None]))
    for prompt in ("a photo", "{} and {}"):
        with pytest.raises(ValueError, match="the prompt must hold {} once, where the class's name goes"):
            ClipJudge("tiny-clip", tmp_path / "clip.pt", names, prompt=prompt)
    assert judge.scores(torch.rand(3, 3, 64, 64)).shape == (3, 2)
    with pytest.raises(ValueError, match="OpenCLIP has no model 'ViT-Z'"):
        ClipJudge("ViT-Z", tmp_path / "clip.pt", ["a"])
    with pytest.raises(FileNotFoundError, match="there are no CLIP weights"):
        ClipJudge("tiny-clip", tmp_path / "none.pt", ["a"])
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="does not fit OpenCLIP's tiny-clip"):
        ClipJudge("tiny-clip", tmp_path / "clip.pt", ["a"])


def holder(state):
    """A module of these weights and nothing else."""
    root = torch.nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(value))
    return root


def test_openais_weights_need_their_activation(tmp_path, capsys):
    open_clip = pytest.importorskip("open_clip")
    for name, quick in (("small-clip", False), ("small-clip-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**TINY_CLIP, "quick_gelu": quick}))
    open_clip.add_model_config(tmp_path)
    clip, _, _ = open_clip.create_model_and_transforms("small-clip-quickgelu")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "vit.openai").mkdir()
    hub = tmp_path / "vit.openai" / "model.bin"
    torch.save(clip.state_dict(), hub)
    script = tmp_path / "script.pt"
    torch.jit.script(holder(clip.state_dict())).save(str(script))
    for file in (hub, script):
        with pytest.raises(
            ValueError, match="are OpenAI's, trained with QuickGELU: take the model small-clip-quickgelu"
        ):
            ClipJudge("small-clip", file, ["rain"])
    assert [default_model(file) for file in (hub, script)] == ["ViT-B-32-quickgelu"] * 2
    assert default_model(tmp_path / "clip.pt") == default_model(tmp_path / "none.pt") == "ViT-B-32"
    pictures = torch.rand(2, 3, 32, 32)
    right, *same = (
        ClipJudge("small-clip-quickgelu", tmp_path / name, ["rain"]) for name in ("clip.pt", hub, script)
    )
    assert capsys.readouterr().err == ""
    for judge in same:
        torch.testing.assert_close(judge.scores(pictures), right.scores(pictures))
    other = ClipJudge("small-clip", tmp_path / "clip.pt", ["rain"])
    assert "taken as small-clip's, with GELU; OpenAI's" in capsys.readouterr().err
    assert not torch.allclose(other.scores(pictures), right.scores(pictures), atol=1e-6)


def test_a_classifier_learns_frames_and_leaves_the_generator_alone(monkeypatch):
    monkeypatch.setattr(frame_classifier, "STEPS", 40)
    labels = torch.arange(60) % 2
    pictures = torch.randint(0, 120, (60, 3, 64, 64), dtype=torch.uint8)
    pictures[labels == 1, 0] += 100
    before = torch.random.get_rng_state()
    classifier = train_classifier(pictures, labels, 2)
    assert torch.random.get_rng_state().equal(before)
    seen = probabilities(classifier, pictures)
    torch.testing.assert_close(seen.sum(1), torch.ones(60))
    assert (seen.argmax(1) == labels).float().mean() > 0.9
    assert probabilities(classifier, torch.rand(3, 3, 128, 128)).shape == (3, 2)


class Ideal:
    """A system whose features are one-hot classes and whose pictures are its features."""

    def encode_sound(self, wave):
        return F.normalize(wave[:, :3].abs() + 1e-6, dim=1)

    def noise(self, count, seed=0):
        return torch.zeros(count, 1)

    def generate(self, features, noise):
        return features[:, :, None, None].clamp(0, 1).expand(-1, -1, 2, 2)


def test_controls_of_an_ideal_system_lead_the_right_way():
    labels = torch.arange(30) % 3
    eye = torch.eye(3)[labels]
    pairs = scene_pairs(0.9 * eye, eye, labels)
    assert (pairs.labels[0] != pairs.labels[1]).all() and len(pairs.labels[0]) > 30
    found = study(Ideal(), lambda p: p.mean((2, 3)), pairs)
    assert set(found) == {"interpolation", "mixing", "editing"}
    for name, turned in found.items():
        assert turned.right == 1.0
        until = 4 if name == "editing" else None  # a strength of 2 goes past the other sound
        assert turned.to[:until] == sorted(turned.to[:until])
        assert turned.since[:until] == sorted(turned.since[:until], reverse=True)
        assert turned.strips.shape == (3, len(turned.values), 3, 2, 2)
    assert found["mixing"].to[len(BALANCES) // 2] == pytest.approx(math.sqrt(0.5), abs=1e-3)
    with pytest.raises(ValueError, match="all of one class"):
        scene_pairs(eye, eye, torch.zeros(30, dtype=torch.int64))


@pytest.fixture
def pictures(tmp_path):
    for i in range(5):
        folder = tmp_path / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (70, 70), (40 * i, 0, 90))
        picture.paste((250, 250, 0), (0, 0, 30, 50))
        picture.save(folder / f"{i}.png")
    return tmp_path


def test_features_are_computed_once_and_stale_ones_are_noticed(pictures, tmp_path, monkeypatch, capsys):
    encoder, file = PictureEncoder("small"), tmp_path / "features.npy"

    def features(encoder=encoder, **options):
        data = SceneData(open_scenes("pictures", pictures, "train"), size=64, workers=0)
        return picture_features(encoder, data, "cpu", file, **options)

    first = features()
    assert first.shape == (5, 128) and first.isfinite().all()
    with monkeypatch.context() as patch:
        patch.setattr(PictureEncoder, "forward", None)
        assert features().equal(first)  # from the file
    assert capsys.readouterr().err == ""
    others = [features(flipped=True), features(PictureEncoder("small"))]
    assert not any(other.equal(first) for other in others)
    said = capsys.readouterr().err
    assert said.count("holds features of other pictures or of another encoder; computing them anew") == 2
    features()
    Image.new("RGB", (70, 70), (255, 255, 255)).save(pictures / "train" / "a" / "0.png")
    changed = features().clone()
    assert not changed[0].equal(first[0]) and changed[1:].equal(first[1:])
    file.write_bytes(b"nothing")
    assert features().equal(changed)
    assert "is not a readable file of features" in capsys.readouterr().err


def test_broken_pictures_have_no_features(pictures):
    scenes = open_scenes("pictures", pictures, "train")
    scenes.entries[1].picture.write_bytes(b"nothing")
    found = picture_features(PictureEncoder("small"), SceneData(scenes, size=64, workers=0), "cpu")
    assert found.isfinite().all(1).tolist() == [True, False, True, True, True]
