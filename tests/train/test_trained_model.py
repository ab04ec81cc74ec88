"""Trained models of every system in folders of their own, from there again, and as exported programs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

pytest.importorskip("huggingface_hub", reason="needs the hub extra")
pytest.importorskip("safetensors", reason="needs the hub extra")

import huggingface_hub
from safetensors.torch import load_file, save_file

from cmx_fast._extras import MissingExtraError
from cmx_fast.networks.audio_encoders import AudioEncoder, Panns
from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import open_visual_encoder
from cmx_fast.search.embedders import open_embedder
from cmx_fast.segment.segmenters import open_segmenter
from cmx_fast.systems.c2l.model import C2L
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.segmenter import C2LSegmenter
from cmx_fast.systems.cmac.embedder import CMACEmbedder
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe
from cmx_fast.systems.csir.embedder import CSIREmbedder
from cmx_fast.systems.csir.evaluation import new_model
from cmx_fast.systems.csir.model import FrozenImageEncoder
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.systems.recognition.segmenter import RecognitionSegmenter, new_segmenter
from cmx_fast.systems.sound2scene.embedder import Sound2SceneEmbedder
from cmx_fast.systems.sound2scene.model import PretrainedSoundEncoder, Sound2Scene, SoundEncoder
from cmx_fast.train import trained_model
from cmx_fast.train.run_folder import FinishedRun
from cmx_fast.train.trained_model import AUDIO_ENCODER_FILE, ENCODER_FILE, MODEL_FILE, origin

CSIR_NUMBERS = CSIRRecipe.preset(
    "demo", image_size=32, seconds=1.0, crop_seconds=0.7, n_mels=32, eval_crops=2
)
CMAC_NUMBERS = {
    "size": 32, "short_side": 32, "frames": 4, "seconds": 0.5, "width": 8, "audio_width": 8, "filters": 16,
    "embedding": 8, "bank": 16, "head": "shared",
}  # fmt: skip
C2L_NUMBERS = {"size": 32, "width": 16, "heads": 2, "atoms": 8, "part_width": 4}


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), file)
    return file


def stirred(model):
    """The model with other statistics in its norms than those that it starts with."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
    return model


def csir(encoder):
    return CSIREmbedder(new_model("dscmr", CSIR_NUMBERS, 3))


def csir_on_encoder(encoder):
    return CSIREmbedder(new_model("csir", CSIR_NUMBERS, 3, FrozenImageEncoder(encoder)))


def cmac(encoder):
    return CMACEmbedder(CMAC(CMACRecipe.preset("demo", **CMAC_NUMBERS), "contrast"))


def cmac_on_encoder(encoder):
    channels = encoder.channels[-1]
    return CMACEmbedder(CMAC(CMACRecipe.preset("demo", **CMAC_NUMBERS, frame_channels=channels)), encoder)


def sound2scene(encoder):
    sounds = SoundEncoder(128, 8, 0.5, positive=False)
    return Sound2SceneEmbedder(Sound2Scene(PictureEncoder("small"), sounds, Generator(64, 8, 10, 128, 6)))


def sound2scene_on_encoder(encoder):
    sounds, generator = SoundEncoder(encoder.width, 8, 0.5), Generator(64, 8, 10, encoder.width, 6)
    return Sound2SceneEmbedder(Sound2Scene(encoder, sounds, generator))


def sound2scene_on_audio_encoder(encoder):
    hears = AudioEncoder("panns", Panns(torch.hann_window(256), torch.rand(32, 129), (4, 4, 4, 4, 4, 8)))
    sounds = PretrainedSoundEncoder(hears, 128, 0.5)
    return Sound2SceneEmbedder(Sound2Scene(PictureEncoder("small"), sounds, Generator(64, 8, 10, 128, 6)))


def c2l(encoder):
    return C2LSegmenter(
        C2L(C2LRecipe.preset("demo", **C2L_NUMBERS), "part+pixel"), None, ["a", "b"], [0, 1, 1]
    )


def c2l_on_encoder(encoder):
    recipe = C2LRecipe.preset("demo", **C2L_NUMBERS, suppressed=0.7, part="assignment")
    network = C2L(recipe, "c2l", encoder.map_shapes(recipe.size, recipe.map_stride))
    nn.init.normal_(network.centroids)
    return C2LSegmenter(network, encoder, ["a", "b"], [0, 1, 1])


def recognition(encoder):
    recipe = RecognitionRecipe.preset("demo", size=32, width=16, heads=2)
    network = new_segmenter("danet", recipe, 3, encoder)
    return RecognitionSegmenter("danet", network, encoder, ["a", "b", "c"])


def recognition_with_encoder(encoder):
    recipe = RecognitionRecipe.preset("demo", size=32, width=16, heads=2, freeze=False)
    network = new_segmenter("se", recipe, 3, encoder.unfreeze())
    return RecognitionSegmenter("se", network, encoder, ["a", "b", "c"])


MODELS = [
    csir, csir_on_encoder, cmac, cmac_on_encoder, sound2scene, sound2scene_on_encoder,
    sound2scene_on_audio_encoder, c2l, c2l_on_encoder, recognition, recognition_with_encoder,
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS, ids=lambda build: build.__name__)
def model(request, encoder_file):
    torch.manual_seed(0)
    return stirred(request.param(open_visual_encoder(f"torchvision:resnet18={encoder_file}"))).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


def outputs(model, rows=2):
    """The outputs of every encoder for the same inputs."""
    found = {}
    for kind, (tower, example) in model.towers().items():
        generator = torch.Generator().manual_seed(2)
        found[kind] = tower(torch.rand(rows, *example.shape[1:], generator=generator).to(model.device))
    return found


def test_a_saved_model_is_opened_elsewhere(model, saved, encoder_file, monkeypatch, tmp_path):
    """From the folder alone: without the encoder's own file, and without any pickle."""
    folder = shutil.copytree(saved, tmp_path / "model")
    encoder_file.rename(encoder_file.with_suffix(".moved"))
    monkeypatch.setattr(torch, "load", None)
    try:
        again = type(model).from_pretrained(folder)
    finally:
        encoder_file.with_suffix(".moved").rename(encoder_file)
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
    for kind, found in outputs(again).items():
        assert found.cpu().equal(outputs(model)[kind])
    assert again.origin == model.origin
    open_any = open_segmenter if hasattr(model, "segment") else open_embedder
    assert type(open_any(folder)) is type(model)
    with pytest.raises(ValueError, match="holds one model and its encoder: leave --model, --seed and"):
        open_any(folder, seed=1)
    with pytest.raises(ValueError, match="and --encoder-file out"):
        open_any(folder, encoder_file=encoder_file)


def test_a_folder_holds_no_more_than_the_model_needs(model, saved):
    """No weights twice, nothing that only training needs, no path of this machine."""
    names = {path.name for path in saved.iterdir()}
    assert names == {"README.md", "config.json", MODEL_FILE} | {
        name
        for name, encoder in ((ENCODER_FILE, model.encoder), (AUDIO_ENCODER_FILE, model.audio_encoder))
        if encoder is not None
    }
    weights = load_file(saved / MODEL_FILE)
    assert not any("audio_encoder" in name for name in weights)
    assert not any("bank" in name or name.startswith("keys.") or "trunk" in name for name in weights)
    for name in ("README.md", "config.json"):
        assert str(saved.parent) not in (saved / name).read_text()
        assert "resnet18.pth" not in (saved / name).read_text()
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1, "weights can be read by whoever can read the card"
    card = (saved / "README.md").read_text()
    assert model.PAPER in card and "library_name: cmx_fast" in card and "was not evaluated" in card


#: The encoders of each model that are tried: the others are built of the same.
EXPORTED = {
    csir: ("image", "audio"), csir_on_encoder: ("image",), cmac: ("video", "audio"), cmac_on_encoder: ("video",),
    sound2scene: ("image", "audio"), sound2scene_on_audio_encoder: ("audio",), c2l_on_encoder: ("image",),
    recognition: ("image",),
}  # fmt: skip


def test_encoders_are_exported_for_any_batch(request, model, tmp_path):
    for kind in EXPORTED.get(request.node.callspec.params["model"], ()):
        tower, example = model.towers()[kind]
        torch.export.save(model.export(kind), tmp_path / f"{kind}.pt2")
        program = torch.export.load(tmp_path / f"{kind}.pt2")
        inputs = torch.rand(5, *example.shape[1:], generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(program.module()(inputs), tower(inputs), rtol=1e-4, atol=1e-5)
        assert program.state_dict  # the weights have their names
        if kind == "image":  # those of other encoders are not there
            assert not any(name.startswith(("generator", "speech")) for name in program.state_dict)
    with pytest.raises(ValueError, match="kind must be one of .*; got 'text'"):
        model.export("text")


@pytest.fixture(scope="module")
def folder(encoder_file, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("one") / "model"
    model = c2l_on_encoder(open_visual_encoder(f"torchvision:resnet18={encoder_file}"))
    model.save_pretrained(folder)
    return folder


def changed(folder, tmp_path, file, change):
    """A copy of the folder in which a file's tensors are changed."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    weights = load_file(copy / file)
    change(weights)
    save_file(weights, copy / file)
    return copy


def test_a_name_on_the_hub_is_fetched_file_by_file(folder, monkeypatch):
    asked = []

    def fetch(repo, name, **options):
        asked.append((repo, name, options["revision"]))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(
        huggingface_hub.hub_mixin,
        "hf_hub_download",
        lambda repo_id, filename, **more: fetch(repo_id, filename, **more),
    )
    model = C2LSegmenter.from_pretrained("someone/people", revision="v1")
    assert model.classes == ("a", "b")
    assert asked == [("someone/people", name, "v1") for name in ("config.json", ENCODER_FILE, MODEL_FILE)]


def test_weights_that_do_not_fit_are_named(folder, tmp_path):
    def change(weights):
        weights["centroids"] = torch.zeros(3, 5)
        weights["foreign"] = weights.pop("encoder.lateral.0.weight")

    with pytest.raises(
        ValueError,
        match=r"model.safetensors does not fit the C2LSegmenter: it lacks encoder.lateral.0.weight; it has foreign; "
        r"shapes differ: centroids is \(3, 5\), not \(3, 16\)",
    ):
        C2LSegmenter.from_pretrained(changed(folder, tmp_path, MODEL_FILE, change))


def test_another_encoder_is_refused(folder, tmp_path):
    def change(weights):
        weights["conv1.weight"].add_(1)

    with pytest.raises(ValueError, match="its weights are others"):
        C2LSegmenter.from_pretrained(changed(folder, tmp_path, ENCODER_FILE, change))


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds a C2LSegmenter, not a CSIREmbedder"):
        CSIREmbedder.from_pretrained(folder)
    with pytest.raises(ValueError, match="holds no model: it has no config.json"):
        C2LSegmenter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained takes no strict"):
        C2LSegmenter.from_pretrained(folder, strict=False)
    with pytest.raises(ValueError, match="of cmx C2LSegmenter, which does not embed files"):
        open_embedder(folder)
    (tmp_path / MODEL_FILE).write_bytes(b"no tensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    shutil.copy(folder / ENCODER_FILE, tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors is not a readable safetensors file"):
        C2LSegmenter.from_pretrained(tmp_path)


def test_a_card_says_what_the_run_measured(folder, tmp_path):
    config = {"command": "train c2l", "preset": "photos", "data": "/secret/place/people", "seeds": [0, 4]}
    scores = [{"accuracy": 0.25, "parts": {"head": 0.125, "tail": None}}, {"accuracy": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps({"split": "val", "seeds": {"c2l": scores}}))
    model = C2LSegmenter.from_pretrained(folder)
    model.from_the(FinishedRun(tmp_path, config), "c2l", 0).save_pretrained(tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert "| cmx train c2l, preset photos, model c2l, seed 0 |" in card and "on its part val" in card
    assert "| accuracy | 0.25 |\n| parts head | 0.125 |\n" in card and "tail" not in card
    assert "| people |" in card and "secret" not in card
    again = C2LSegmenter.from_pretrained(tmp_path / "model")
    assert again.origin == model.origin and again.origin["data"] == "people"
    (tmp_path / "results.json").unlink()
    assert origin(FinishedRun(tmp_path, config), "c2l", 4)["figures"] == {}


def test_without_the_extra_everything_but_saving_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = importlib.util.spec_from_file_location("without_the_extra", trained_model.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TrainedModel().origin == {}
    for call in (module.TrainedModel.from_pretrained, module.TrainedModel().push_to_hub):
        with pytest.raises(MissingExtraError, match=r"pip install 'cmx-fast\[hub\]' brings it"):
            call("name")
