"""The whole of ``cmx train csir`` and ``cmx evaluate csir`` on a few real files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from interruptions import assert_same_run, timeless, train_through_stops
from PIL import Image
from torchvision import models

from cmx_fast.explain.commands import gradcam as gradcam_command
from cmx_fast.prepare.commands import prepare_image2reverb
from cmx_fast.search.commands import embed as embed_command
from cmx_fast.search.commands import search
from cmx_fast.search.embedders import open_embedder
from cmx_fast.systems.csir import evaluation
from cmx_fast.systems.csir.commands import evaluate_csir, train_csir
from cmx_fast.systems.csir.embedder import CSIREmbedder
from cmx_fast.systems.csir.evaluation import embed, open_split
from cmx_fast.systems.csir.model import image_encoder
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.train.settings import changes

RATE = 22050
TINY = [
    "image_size=32", "seconds=1.0", "crop_seconds=0.7", "n_mels=32", "sentences_per_air=2", "eval_crops=2",
    "speech_steps=4", "image_steps=2", "head_steps=3", "cross_steps=4", "evaluations=2",
    "speech_batch=8", "image_batch=8", "head_batch=8", "cross_batch=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three spaces in the Image2Reverb layout: noise that decays at their own rate, pictures of their own colour."""
    root = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(0)
    rows = ["image,air,space,indoor,rt60,split"]
    for split, pairs in (("train", 4), ("test", 2)):
        for folder in (f"{split}_A", f"{split}_B", f"speech/{split}"):
            (root / folder).mkdir(parents=True)
        for i in range(3):
            soundfile.write(root / f"speech/{split}/{i}.wav", 0.2 * rng.standard_normal(RATE // 2), RATE)
        for space in range(3):
            for pair in range(pairs):
                decay = 10 ** (-3 * np.arange(RATE // 4) / RATE / (0.1 + 0.1 * space))
                image, air = f"{split}_A/{space}_{pair}_label.jpg", f"{split}_B/{space}_{pair}_img.wav"
                soundfile.write(root / air, 0.3 * rng.standard_normal(RATE // 4).clip(-3, 3) * decay, RATE)
                pixels = rng.integers(0, 90, (40, 48, 3)) + 80 * np.eye(3)[space]
                Image.fromarray(pixels.astype(np.uint8)).save(root / image)
                rows.append(f"{image},{air},space{space},{int(space > 0)},{0.1 + 0.1 * space},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def train(data, out, *more, **options):
    train_csir(data, out, preset="demo", set=[*TINY, *more], **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(data, one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    train(data, out)
    return out


def test_a_run_leaves_everything_a_reader_needs(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["spaces"] == ["space0", "space1", "space2"]
    assert config["recipe"]["alpha"] == 0.6
    for stage in ("speech", "image", "csir", "dscmr"):
        assert (finished / "seed0" / f"{stage}.pt").exists()
    results = json.loads((finished / "results.json").read_text())
    assert results["chance_R@1"] == pytest.approx(1 / 3)
    for model in ("csir", "dscmr", "classifiers", "rt60"):
        (seed,) = results["seeds"][model]
        assert results["mean_and_spread"][model]["isr"]["total"]["R@1"] == [seed["isr"]["total"]["R@1"], 0.0]
    looks = [row for row in timeless(finished) if "sir R@1" in row]
    assert [row["step"] for row in looks] == [2, 4] * 4
    (rt60,) = results["rt60"]
    assert rt60["responses"] == 6 and rt60["median"] > 0 and 0 <= rt60["within"] <= 1
    assert (finished / "metrics.csv").read_text().startswith("stage,step,loss")


def test_report_stands_alone_and_has_its_parts(finished):
    html = (finished / "report.html").read_text()
    for part in (
        'id="recall"',
        "Look and listen",
        "Where the image encoder looks",
        "Held-out",
        "Every number",
        "RT60 alone",
        "<td>chance</td>",
        'id="rt60"',
    ):
        assert part in html
    assert (
        html.count("data:audio/mpeg;base64,") == 3 + 3 * 5
    )  # one query per space; five sentences per picture
    assert html.count('class="card right"') + html.count('class="card wrong"') == 2 * 3 * 5
    assert html.count("<svg") == 3
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing from elsewhere
    assert len(re.findall(r'alt="heat map', html)) == 2 * 3


def test_an_interrupted_run_has_the_same_numbers(data, finished, tmp_path, monkeypatch):
    begun = train_through_stops(lambda: train(data, tmp_path / "run", resume=True), monkeypatch)
    assert begun == [
        "seed0/speech",
        "seed0/image",
        *(
            f"seed0/{model}{part}"
            for model in ("csir", "dscmr", "classifiers", "rt60")
            for part in ("-heads", "")
        ),
    ]
    assert_same_run(tmp_path / "run", finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()


KILL_ITSELF = """
import json, os, signal, sys
from pathlib import Path
import torch
from cmx_fast.systems.csir import train as csir
from cmx_fast.systems.csir.commands import train_csir
torch.set_num_threads(1)
straight = csir.training_batches
def killing(data, recipe, batch, wanted, *rest, **more):
    if wanted == ("image",):
        return lambda start: os.kill(os.getpid(), signal.SIGKILL)
    return straight(data, recipe, batch, wanted, *rest, **more)
csir.training_batches = killing
train_csir(Path(sys.argv[1]), Path(sys.argv[2]), preset="demo", model=["csir"], set=json.loads(sys.argv[3]))
"""


def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_numbers(data, finished, tmp_path):
    arguments = [sys.executable, "-c", KILL_ITSELF, str(data), str(tmp_path), json.dumps(TINY)]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    train(data, tmp_path, model=["csir"], resume=True)
    rows = timeless(finished)
    assert timeless(tmp_path) == rows[: next(i for i, row in enumerate(rows) if "dscmr" in row["stage"])]


def test_evaluation_repeats_the_training_runs_figures(finished, data):
    trained = (finished / "results.json").read_text()
    (finished / "results.json").unlink()
    evaluate_csir(finished, data=data)
    assert (finished / "results.json").read_text() == trained


def test_evaluation_needs_a_finished_run(finished, tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        evaluate_csir(tmp_path)
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    with pytest.raises(ValueError, match="not finished: no seed0/csir.pt"):
        evaluate_csir(tmp_path)


def test_bfloat16_trains(data, tmp_path):
    train(data, tmp_path, model=["csir"], precision="bf16")
    assert "dscmr" not in json.loads((tmp_path / "results.json").read_text())["seeds"]


def test_loading_files_gives_what_the_memory_holds(data):
    recipe = changes(TINY, CSIRRecipe)
    kept = open_split(data, "test", CSIRRecipe.preset("demo", **recipe), "cpu")
    read = open_split(data, "test", CSIRRecipe.preset("demo", **{**recipe, "cache": False}), "cpu")
    for a, b in zip(kept.in_order(("image", "logmel")), read.in_order(("image", "logmel")), strict=True):
        assert torch.equal(a["space"], b["space"])
        torch.testing.assert_close(a["image"], b["image"])
        torch.testing.assert_close(a["logmel"], b["logmel"], atol=0.05, rtol=0)  # kept in float16
        floor = b["logmel"].amax((1, 2)) - 80
        assert (b["logmel"].amin((1, 2)) >= floor - 1e-3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of paper, demo; got 'huge'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16; got 'fp8'"),
        ({"model": ["clip"]}, "model must be one or more of csir, dscmr, classifiers, rt60; got clip"),
        ({"split": "train"}, "split must be one of 'test', 'val'; got 'train'"),
        ({"set": ["alpha"]}, "--set takes NAME=VALUE; got 'alpha'"),
        ({"set": ["alpha=2"]}, "alpha must be between 0 and 1; got 2"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(evaluation, "open_split", None)
    with pytest.raises(ValueError, match=message):
        train_csir(tmp_path, tmp_path / "run", **options)


def test_changes_read_numbers_and_words():
    assert changes(["alpha=0.5", "cache=True", "contrast=cross"], CSIRRecipe) == {
        "alpha": 0.5,
        "cache": True,
        "contrast": "cross",
    }


def test_a_pretrained_image_encoder_stays_as_it_is_and_is_found_again(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    file, moved, run = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "run"
    torch.save(models.shufflenet_v2_x0_5().state_dict(), file)
    spec = f"shufflenet_v2_x0_5={file}"
    train(data, run, encoder=spec)
    config = json.loads((run / "config.json").read_text())
    assert config["encoder"] == spec and config["recipe"]["image_size"] == 224
    assert not (run / "seed0" / "image.pt").exists()
    weights = torch.load(run / "seed0" / "csir.pt", weights_only=True)["module"]
    assert not any(name.startswith("image_encoder") for name in weights)
    assert weights["image_projector.weight"].shape == (64, 1024)
    features = np.load(run / "image_features.npy")
    assert features.shape == (12, 1024) and np.isfinite(features).all()
    results = json.loads((run / "results.json").read_text())
    html = (run / "report.html").read_text()
    assert "Where the image encoder looks" not in html and f"<code>{spec}</code>, fixed" in html
    file.rename(moved)
    with pytest.raises(
        FileNotFoundError, match="was trained with shufflenet_v2_x0_5=.*a.pth; has the file moved"
    ):
        evaluate_csir(run)
    evaluate_csir(run, encoder_file=moved)
    open_embedder(run, encoder_file=moved)
    assert json.loads((run / "results.json").read_text()) == results
    torch.save(models.shufflenet_v2_x0_5().state_dict(), moved)
    with pytest.raises(ValueError, match="its weights are others"):
        evaluate_csir(run, encoder_file=moved)


def test_encoders_that_can_not_be_used(data, finished, tmp_path):
    with pytest.raises(ValueError, match="give --encoder or --places365, not both"):
        train(data, tmp_path / "run", encoder="resnet18=a", places365=tmp_path / "b")
    with pytest.raises(ValueError, match="image_encoder = pretrained needs its name"):
        train(data, tmp_path / "run", "image_encoder=pretrained")
    with pytest.raises(ValueError, match="was trained without --encoder"):
        evaluate_csir(finished, encoder_file=tmp_path / "b")


@pytest.mark.parametrize("cache", [True, False])
def test_frozen_images_are_those_of_each_rows_own_pair(data, cache):
    class Shade(torch.nn.Module):
        """A picture's mean red, green and blue."""

        width = 3

        def forward(self, image):
            return image.mean((2, 3))

        def fingerprint(self):
            return "shade"

    recipe = CSIRRecipe.preset("demo", **changes([*TINY, f"cache={cache}"], CSIRRecipe))
    pairs = open_split(data, "train", recipe, "cpu")
    rows = [[3, 23, 8], [0, 1, 17]]
    before = list(pairs.load(iter(rows), ("image", "logmel")))
    pairs.freeze_images(Shade())
    for shown, frozen in zip(before, pairs.load(iter(rows), ("image", "logmel")), strict=True):
        assert "image" not in frozen
        torch.testing.assert_close(frozen["image_features"], shown["image"].mean((2, 3)))
        torch.testing.assert_close(frozen["logmel"], shown["logmel"])


def test_the_papers_tables_from_the_published_layout(data, tmp_path):
    """``cmx prepare image2reverb``, then ``cmx train csir --places365``: tables 1 and 2, and figure 3."""
    indoor = tmp_path / "indoor.csv"
    indoor.write_text("space,indoor\n0,0\n1,1\n2,1\n")
    prepared = tmp_path / "image2reverb"
    prepare_image2reverb(data, data / "speech", prepared, indoor=indoor, test_share=0.34)
    counts = json.loads((prepared / "prepared.json").read_text())
    assert counts["pairs"] == {"train": 12, "test": 6} and (counts["indoor"], counts["outdoor"]) == (2, 1)
    weights = {f"module.{name}": value for name, value in image_encoder("resnet10").state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "places365.pth.tar")
    train(prepared, tmp_path / "run", model=["csir"], places365=tmp_path / "places365.pth.tar")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (seed,) = results["seeds"]["csir"]
    for direction in ("sir", "isr"):
        assert all(seed[direction][group]["R@5"] is not None for group in ("indoor", "outdoor", "total"))
    html = (tmp_path / "run" / "report.html").read_text()
    assert "logit of the image encoder's own 365 places" in html


def test_responses_heard_alone_train_and_test_the_speech_encoder_only(data, tmp_path):
    header, *rows = (data / "manifest.csv").read_text().splitlines()
    lines = [header]
    for row in rows:
        image, air, *rest, split = row.split(",")
        split = "val" if split == "test" else split
        lines.append(",".join([str(data / image), str(data / air), *rest, split]))
        if ",space2," in row:
            name = "tunnel" if split == "train" else "cave"
            lines.append(f",{data / air},{name},,0.3,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    spoken = [f"{f},{part}" for part in ("train", "val") for f in (data / "speech" / "train").iterdir()]
    (tmp_path / "speech.csv").write_text("\n".join(["file,split", *spoken]) + "\n")
    train(tmp_path, tmp_path / "run", model=["csir"], split="val")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["spaces"] == ["space0", "space1", "space2", "tunnel"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["split"], results["images"]["gallery"]) == ("val", 6)
    assert results["chance_R@1"] == pytest.approx(1 / 3)
    html = (tmp_path / "run" / "report.html").read_text()
    assert "those of the val part" in html and "tunnel" not in html and "cave" not in html
    with pytest.raises(ValueError, match=r"speech.csv for split 'test'"):
        evaluate_csir(tmp_path / "run")


def test_files_are_embedded_as_the_evaluation_does(data, finished, tmp_path):
    """A picture and its sentence's reverberant wave, as files of their own, have the rows of the evaluation."""
    embedder = CSIREmbedder.from_run(finished)
    assert embedder.origin["model"] == "csir" and 0 <= embedder.origin["figures"]["sir total R@1"] <= 1
    recipe = embedder.recipe
    test = open_split(data, "test", recipe, "cpu", spaces=["space0", "space1", "space2"])
    rows = embed(embedder.model, test, recipe)
    soundfile.write(tmp_path / "wave.wav", test.dataset.load_wave(3).numpy(), RATE, subtype="FLOAT")
    spoken = embedder.embed(tmp_path / "wave.wav", "audio")
    seen = embedder.embed(test.dataset.pairs[2].image, "image")
    torch.testing.assert_close(
        spoken, F.normalize(rows.speech[3], dim=0), rtol=0, atol=2e-3
    )  # kept as float16
    torch.testing.assert_close(seen, F.normalize(rows.image[2], dim=0), rtol=0, atol=1e-5)
    quiet = embedder.encode_speech(1e-3 * test.dataset.load_wave(3)[None])[0]
    torch.testing.assert_close(quiet, spoken, rtol=0, atol=1e-3)  # level does not count
    for options in ({"model": "rt60"}, {"model": "csir", "seed": 7}):
        with pytest.raises(ValueError, match="to open; it has csir, dscmr of the seeds 0"):
            CSIREmbedder.from_run(finished, **options)


def test_a_similarity_is_shown_where_it_comes_from(data, finished, tmp_path, capsys):
    image, audio = next((data / "test_A").iterdir()), data / "speech/test/0.wav"
    gradcam_command(finished, image, audio, out=tmp_path / "deep/shown.png")
    embedder = CSIREmbedder.from_run(finished)
    seen, heard = embedder.embed(image, "image"), embedder.embed(audio, "audio")
    assert f"cosine {float(seen @ heard):.3f} of {image.name} and 0.wav: " in capsys.readouterr().out
    assert Image.open(tmp_path / "deep/shown.png").size[0] > 800
    wave = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])
    assert embedder.speech_heat(wave, seen).shape == (8, 16)
    with pytest.raises(ValueError, match="give --image and --audio"):
        gradcam_command(finished, image, out=tmp_path / "shown.png")
    with pytest.raises(ValueError, match=r"--video \S*none.mp4: there is no such file"):
        gradcam_command(finished, video=tmp_path / "none.mp4")
    with pytest.raises(ValueError, match=r"manifest.csv: can't be decoded"):
        gradcam_command(finished, data / "manifest.csv", audio, out=tmp_path / "shown.png")


def test_ones_own_files_are_embedded_and_found(data, finished, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    for i, image in enumerate(sorted((data / "test_A").iterdir())):
        (files / f"{i}.jpg").write_bytes(image.read_bytes())
    (files / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (files / "notes.txt").touch()
    embed_command(finished, [files], tmp_path / "index")
    said = capsys.readouterr().out
    assert "6 image, 64 numbers each" in said and "not looked at: 1 .txt" in said
    assert re.search(r"left out: \S*broken\.jpg: ", said)
    search(tmp_path / "index", audio=data / "speech/test/0.wav", top=3)
    said = capsys.readouterr().out
    assert len(re.findall(r"\d\.jpg", said)) >= 3 and "cosine" in said
    page = (tmp_path / "index/search.html").read_text()
    assert page.count("data:image/jpeg") == 3 and page.count("<audio") == 1
    # A picture is nearest to itself among pictures.
    search(tmp_path / "index", image=files / "4.jpg", top=1, among=["image"])
    assert re.search(r"1\.000 .*image", said := capsys.readouterr().out) and "4.jpg" in said
    for options, message in (
        ({}, "give one of --image, --audio and --video"),
        ({"image": files / "none.jpg"}, "there is no such file"),
        ({"image": files / "broken.jpg"}, "--image .*broken.jpg: "),
        ({"video": files / "notes.txt"}, "embeds image and audio, not video"),
        ({"image": files / "0.jpg", "among": ["text"]}, "--among must be image, audio, video; got 'text'"),
    ):
        with pytest.raises(ValueError, match=message):
            search(tmp_path / "index", **options)
