"""``cmx train icgan``, ``sound2scene`` and what follows on a few real videos: whole, interrupted, with broken files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="needs the media extra")
pytest.importorskip("soundfile", reason="needs the media extra")
pytest.importorskip("torchmetrics", reason="needs the evaluate extra")
pytest.importorskip("faiss", reason="needs the cpu or cuda extra")

import numpy as np
import soundfile
from interruptions import assert_same_run, timeless, train_through_stops
from PIL import Image
from torchvision import models

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.media.decode import read_wave
from cmx_fast.data.sets.scenes import open_scenes
from cmx_fast.data.sets.selection import write_selection
from cmx_fast.evaluate import frame_classifier
from cmx_fast.networks.audio_encoders import VGGish
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.networks.weights import save
from cmx_fast.search.embedders import open_embedder
from cmx_fast.simulate.commands import simulate_clips
from cmx_fast.systems.sound2scene.checkpoints import open_icgan, open_sound2scene
from cmx_fast.systems.sound2scene.commands import (
    edit_picture,
    evaluate_sound2scene,
    generate_picture,
    invert_picture,
    train_sound2scene,
)
from cmx_fast.systems.sound2scene.data import SoundBatches
from cmx_fast.systems.sound2scene.embedder import Sound2SceneEmbedder
from cmx_fast.systems.sound2scene.evaluation import ROWS, Evaluation
from cmx_fast.systems.sound2scene.icgan.commands import train_icgan
from cmx_fast.systems.sound2scene.icgan.data import NeighbourBatches, ViewBatches
from cmx_fast.systems.sound2scene.model import Alignment, PretrainedSoundEncoder, SoundEncoder
from cmx_fast.systems.sound2scene.picture_features import picture_features
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.systems.sound2scene.sound_features import open_splits
from cmx_fast.systems.sound2scene.train import held_out_loss
from cmx_fast.train.run_folder import RunFolder

GENERATOR = [
    "encoder_steps=3", "encoder_batch=8", "moments=2", "width=8", "dim_z=10", "condition=8", "neighbours=3",
    "batch=4", "steps=5", "average_from=2",
]  # fmt: skip
SOUNDS = ["moments=2", "seconds=1.0", "width=8", "epochs=2", "batch=8"]


@pytest.fixture(scope="module", autouse=True)
def small():
    """One thread: the tensors are too small to share out; and a judge that has hardly learnt."""
    before, steps = torch.get_num_threads(), frame_classifier.STEPS
    torch.set_num_threads(1)
    frame_classifier.STEPS = 2
    yield
    torch.set_num_threads(before)
    frame_classifier.STEPS = steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight classes, of each three recordings to train on and one held out."""
    root = tmp_path_factory.mktemp("simulated") / "clips"
    simulate_clips(
        root, clips=40, width=64, height=64, seconds=1.25, fps=12, layout="vggsound", distractors=0
    )
    return root


def icgan(data, out, *more, **options):
    train_icgan(data, dataset="vggsound", out=out, preset="demo", set=[*GENERATOR, *more], **options)


def sounds(data, generator, out, *more, **options):
    train_sound2scene(data, generator, out=out, preset="demo", set=[*SOUNDS, *more], **options)


@pytest.fixture(scope="module")
def generator(data, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "icgan"
    icgan(data, out)
    return out


@pytest.fixture(scope="module")
def finished(data, generator, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sounds"
    sounds(data, generator, out)
    return out


def weights(run, stage):
    return torch.load(run / f"{stage}.pt", weights_only=True)["module"]


def test_a_generators_run(generator):
    rows = timeless(generator)
    assert [row["step"] for row in rows if row["stage"] == "generator"] == [1, 2, 3, 4, 5]
    assert {"discriminator", "generator", "loss"} <= rows[-1].keys()
    encoder, network = open_icgan(generator)
    assert encoder.kind == "small" and network.dim_z == 10
    stored = weights(generator, "generator")
    assert network.linear.weight.equal(stored["average.linear.weight"])
    assert not stored["average.linear.weight"].equal(stored["generator.linear.weight"])
    assert stored["updates"] == 5


def test_an_interrupted_generator_has_the_same_numbers(data, generator, tmp_path, monkeypatch):
    begun = train_through_stops(lambda: icgan(data, tmp_path / "run", resume=True), monkeypatch)
    assert begun == ["pictures", "generator"]
    assert_same_run(tmp_path / "run", generator)


def test_a_run_leaves_everything_a_reader_needs(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["scenes"] == 8 and list(results["table"]) == list(ROWS)
    assert set(results["table"]["B"]) == {"class R@1", "class R@5", "FID", "IS"}
    assert results["table"]["D"]["FID"] == pytest.approx(0, abs=1e-3)
    assert results["retrieval"]["chance R@1"] == 1 / 8
    assert set(results["baselines"]) == {"another frame", "nearest training sound"}
    assert results["memory"] == 64  # the demo's row C is not capped
    assert set(results["controls"]) == {"interpolation", "mixing", "editing"}
    html = (finished / "report.html").read_text()
    assert html.count('alt="from the sound"') == 8 * 3 and "<svg" in html and "Mixing" in html
    rows = timeless(finished)
    assert {"held_out_loss", "sound_to_picture"} <= rows[-1].keys()


def test_a_run_embeds_and_says_where_it_is_from(finished):
    embedder = Sound2SceneEmbedder.from_run(finished)
    assert embedder.origin["figures"]["chance R@1"] == 1 / 8
    assert (
        embedder.encode_sound(torch.rand(3, 900)).shape
        == embedder.encode_picture(torch.rand(3, 3, 20, 30)).shape
    )


def test_evaluating_again_gives_the_same_figures(finished):
    before = json.loads((finished / "results.json").read_text())
    evaluate_sound2scene(finished)
    assert json.loads((finished / "results.json").read_text()) == before


def test_a_pretrained_encoder_conditions_the_generator_and_is_found_again(
    data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", lambda *a, **k: None)
    file, moved, run = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "icgan"
    torch.manual_seed(0)
    torch.save(models.shufflenet_v2_x0_5().state_dict(), file)
    icgan(data, run, "moments=1", encoder=f"shufflenet_v2_x0_5={file}")
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["encoder"] == "pretrained" and not (run / "pictures.pt").exists()
    file.rename(moved)
    with pytest.raises(
        FileNotFoundError, match="trained with shufflenet_v2_x0_5=.*a.pth; has the file moved"
    ):
        open_icgan(run)
    encoder, generator = open_icgan(run, moved)
    assert isinstance(encoder, VisualEncoder) and generator.shared_feat.weight.shape[1] == encoder.width
    sounds(data, run, tmp_path / "sounds", "epochs=1", "moments=1", picture_encoder=moved)
    system = open_sound2scene(tmp_path / "sounds")
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    system.perceive(picture).sum().backward()
    assert picture.grad.abs().sum() > 0
    again = moved.rename(tmp_path / "c.pth")
    with pytest.raises(FileNotFoundError, match="has the file moved"):
        open_embedder(tmp_path / "sounds")
    open_embedder(tmp_path / "sounds", encoder_file=again)
    torch.save(models.shufflenet_v2_x0_5().state_dict(), moved)
    with pytest.raises(ValueError, match="its weights are others"):
        open_icgan(run, moved)


def test_interrupted_sounds_have_the_same_numbers(data, generator, finished, tmp_path, monkeypatch):
    begun = train_through_stops(lambda: sounds(data, generator, tmp_path / "run", resume=True), monkeypatch)
    assert begun == ["sounds"]
    assert_same_run(tmp_path / "run", finished)


def test_broken_files_are_named_and_training_goes_on(data, generator, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    with (broken / "vggsound.csv").open() as file:
        train = [line.split(",") for line in file if line.strip().endswith("train")]
    files = [broken / "video" / f"{row[0]}_{int(row[1]):06d}.mp4" for row in train[:3]]
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 3])
    files[1].write_bytes(b"")
    files[2].unlink()
    icgan(broken, tmp_path / "icgan")
    sounds(broken, generator, tmp_path / "run", "cache=False", precision="bf16")
    said = capsys.readouterr().err
    assert said.count("train: 29 scenes; 3 left out:") == 2
    assert all(file.name in said for file in files)
    assert "3 scenes could not be used" in (tmp_path / "run" / "report.html").read_text()


def test_losses_selections_and_shorter_hearing(data, generator, tmp_path, monkeypatch):
    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", lambda *a, **k: None)
    name = next((data / "video").iterdir()).stem
    write_selection(
        tmp_path / "s.json", {f"{name[:11]}_{1000 * int(name[12:])}_{1000 * int(name[12:]) + 10000}": [2]}
    )
    for loss in ("regression", "cosine", "l2 one way"):
        out = tmp_path / loss
        sounds(data, generator, out, f"loss={loss}", "heard=0.5", "epochs=1", selection=tmp_path / "s.json")
        assert timeless(out)[-1]["held_out_loss"] > 0


def test_validation_chooses_the_weights_and_ends_training(data, generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", lambda *a, **k: None)
    out, undivided = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data, undivided)
    table = undivided / "vggsound.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.rstrip().endswith(",val")))
    more = (
        "validation=0.3",
        "epochs=6",
        "patience=2",
        "lr=0.05",
        "batch=4",
        "framing=stretch",
        "around=true",
    )
    sounds(undivided, generator, out, *more)
    said = capsys.readouterr().err
    assert re.search(r"train: 2\d scenes", said)
    assert re.search(r"validation: \d+ scenes", said)
    losses = [row["held_out_loss"] for row in timeless(out) if "held_out_loss" in row]
    best = losses.index(min(losses))
    assert len(losses) == min(6, best + 3)  # one an epoch, until two were no better
    splits = open_splits("vggsound", undivided, RunFolder.open_finished(out, "train sound2scene").recipe(
        Sound2SceneRecipe), 64)  # fmt: skip
    features = picture_features(open_icgan(generator)[0], splits["val"], "cpu")
    module = Alignment(SoundEncoder(128, 8, 1.0))
    module.load_state_dict(weights(out, "sounds"))
    assert held_out_loss(module, splits["val"], features)["held_out_loss"] == pytest.approx(
        min(losses), rel=1e-4
    )


def test_some_classes_and_the_authors_weights(data, generator, tmp_path, capsys):
    """Published weights become a run of this data, of some classes of it, that nothing has trained."""
    file, classes, out = tmp_path / "sound2scene.pth", tmp_path / "classes.txt", tmp_path / "run"
    encoder = SoundEncoder(128, 8)
    torch.save({f"audnet.{n}": v for n, v in encoder.resnet.state_dict().items()}, file)
    names = open_scenes("vggsound", data, "train").class_names[:3]
    classes.write_text("\n".join(names))
    options = {"weights": file, "classes": classes}
    with pytest.raises(
        ValueError, match="has width = 8, seconds = 10 and positive = True; the recipe has 8, 1"
    ):
        sounds(data, generator, out, **options)
    sounds(data, generator, out, "seconds=10", "capped=true", **options)
    assert "held out: 3 scenes" in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == 3
    assert results["memory"] <= 24
    assert set(results["baselines"]) == {"another frame", "nearest training sound"}
    stored = weights(out, "sounds")
    assert stored["sound_encoder.resnet.conv1.weight"].equal(encoder.resnet.conv1.weight)
    assert "Nothing was trained" in (out / "report.html").read_text()
    wave = 0.1 * torch.randn(1, 8000)
    system = open_sound2scene(file, generator)
    assert system.encode_sound(wave).equal(open_sound2scene(out).encode_sound(wave))
    with pytest.raises(ValueError, match="is a sound encoder alone: say where its generator is"):
        open_sound2scene(file)


def test_pairs_without_labels_are_measured_by_retrieval(data, generator, tmp_path):
    root, scenes = tmp_path / "pairs", open_scenes("vggsound", data, "train")
    for split, entries in (("train", scenes.entries[:8]), ("test", scenes.entries[8:14])):
        for folder in ("images", "audios"):
            (root / split / folder).mkdir(parents=True)
        for number, entry in enumerate(entries):
            name = f"{entry.name[:11]}_{1000 * number}_{1000 * number + 10000}"
            frame = SceneData(scenes, size=64, workers=0).read_pictures(number)[0]
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(root / split / "images" / f"{name}.jpg")
            wave = read_wave(entry.sound, entry.media.start, 1.0, 16000)
            soundfile.write(root / split / "audios" / f"{name}.wav", wave.numpy(), 16000)
    out = tmp_path / "run"
    sounds(root, generator, out, "moments=1", "epochs=1", dataset="pairs")
    results = json.loads((out / "results.json").read_text())
    assert results["controls"] == {}
    assert results["compared_by"] is None
    assert results["table"]["B"] == {}
    assert results["retrieval"]["chance R@1"] == 1 / 6
    assert set(results["baselines"]) == {"nearest training sound"}
    html = (out / "report.html").read_text()
    assert "Generated from sound, the right class" not in html
    assert html.count('alt="from the sound"') == 6 * 3
    assert "the nearest training sound" in html


def test_an_ablation_is_the_papers_table(data, generator, tmp_path, monkeypatch, capsys):
    """Rows of the table for several seeds in one command, each a run of its own."""
    name, out = next((data / "video").iterdir()).stem, tmp_path / "ablation"
    selection = tmp_path / "s.json"
    write_selection(selection, {f"{name[:11]}_{1000 * int(name[12:])}_{1000 * int(name[12:]) + 10000}": [2]})
    measured = []

    def evaluated(run, train, test, *, features, **_):
        """FID 10 more for every seed, and 1 more for the row."""
        measured.append((run.path.relative_to(out).as_posix(), features.name, train.selected))
        figures = {"class R@1": 0.5, "FID": 10 * run.config["seed"] + (run.config["selection"] is None)}
        retrieval = {"sound_to_picture R@1": 0.1, "sound_to_picture R@10": 0.4}
        return Evaluation(8, 8, retrieval, {}, {"B": figures}, 64, None, {})

    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", evaluated)
    sounds(data, generator, out, "epochs=1", ablation=["middle", "regression"], seeds=2, selection=selection)
    assert measured == [
        ("regression/seed0", "features", 1), ("regression/seed1", "features", 1),
        ("middle/seed0", "features_of_middle_frames", 0), ("middle/seed1", "features_of_middle_frames", 0),
    ]  # fmt: skip
    results = json.loads((out / "ablation.json").read_text())
    assert list(results) == ["regression", "middle"]  # in the table's order
    assert results["middle"]["mean_and_spread"]["FID"] == pytest.approx([6, 50**0.5])
    assert [figures["FID"] for figures in results["regression"]["seeds"]] == [0, 10]
    assert results["middle"]["seeds"][0]["own R@10"] == 0.4
    for row, loss in (("regression", "regression"), ("middle", "l2")):
        config = json.loads((out / row / "seed1" / "config.json").read_text())
        assert config["recipe"]["loss"] == loss
    kept = {file.parent.name for file in out.rglob("*.npy")}
    assert kept == {"features", "features_of_middle_frames"}
    table = capsys.readouterr().out
    assert "A  L_2" in table
    assert "5.00±7.07" in table
    assert "mean±std of 2 seeds" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ablation": ["middle"]},
            "--ablation middle is the row without frame selection; it needs --selection",
        ),
        (
            {"ablation": ["b"]},
            "ablation must be one or more of regression, cosine, middle, 1s, 5s, full, all; got b",
        ),
        ({"ablation": ["5s"]}, r"heard must be in \[0, seconds = 1.0\]; got 5.0"),
        ({"seeds": 2}, "--seeds 2 is for --ablation"),
        ({"weights": Path("a"), "ablation": ["all"]}, "--weights is a trained sound encoder"),
        ({"clip_prompt": "a photo"}, "the prompt must hold {} once"),
        ({"audio_encoder": "wav2vec:a"}, "there is no audio encoder 'wav2vec:a'"),
    ],
)
def test_ablations_and_options_that_can_not_be(data, generator, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        sounds(data, generator, tmp_path / "run", **options)
    with pytest.raises(FileNotFoundError, match="there are no CLIP weights"):
        sounds(data, generator, tmp_path / "run", clip_weights=tmp_path / "none.pt")


def test_a_pretrained_audio_encoder_hears_for_a_layer(data, generator, tmp_path, monkeypatch):
    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", lambda *a, **k: None)
    file = tmp_path / "vggish.pth"
    torch.manual_seed(0)
    vggish = VGGish()
    torch.save(vggish.state_dict(), file)
    sounds(data, generator, tmp_path / "run", "epochs=1", audio_encoder=f"vggish:{file}")
    system = open_sound2scene(tmp_path / "run")
    assert isinstance(system.sound_encoder, PretrainedSoundEncoder)
    assert system.encode_sound(0.1 * torch.randn(2, 9000)).shape == (2, 128)
    kept = system.sound_encoder.audio_encoder.network.features[0].weight
    assert kept.equal(vggish.features[0].weight)


def test_labelled_sounds_come_first(data, generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmx_fast.systems.sound2scene.train.evaluate_run", lambda *a, **k: None)
    root = tmp_path / "labelled"
    for number, name in enumerate(("high", "low")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            wave = 0.3 * np.sin(np.arange(24_000 + 1000 * i) * (2.0 - 1.5 * number))
            soundfile.write(root / name / f"{i}.wav", wave, 16000)
    (root / "high" / "0.wav").write_bytes(b"nothing")
    more = ("epochs=1", "sound_epochs=3", "fixed=true")
    sounds(data, generator, tmp_path / "run", *more, sounds=root)
    said = capsys.readouterr().err
    assert "labelled sounds: 11 of 2 classes; 1 left out:" in said
    rows = timeless(tmp_path / "run")
    assert [row["stage"] for row in rows if "right" in row] == ["labelled_sounds"] * 3
    first, then = (weights(tmp_path / "run", stage) for stage in ("labelled_sounds", "sounds"))
    for name, value in then.items():
        same = value.equal(first[name])
        assert same != (".fc." in name), name
    begun = train_through_stops(
        lambda: sounds(data, generator, tmp_path / "again", *more, sounds=root, resume=True), monkeypatch
    )
    assert begun == ["labelled_sounds", "sounds"]
    assert_same_run(tmp_path / "again", tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"must hold a folder of sounds for each of two classes .*; it has 0"
    ):
        sounds(data, generator, tmp_path / "other", *more, sounds=root / "low")


def test_passes_divide_a_generators_batch(data, tmp_path):
    icgan(data, tmp_path / "run", "accumulate=2")
    assert timeless(tmp_path / "run")[-1]["step"] == 5
    with pytest.raises(
        ValueError, match=r"batch = 4 can't be divided by 1 processes and accumulate = 3 passes"
    ):
        icgan(data, tmp_path / "other", "accumulate=3")


@pytest.fixture
def media(tmp_path):
    wave = 0.3 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, -0.5 * wave], 1), 44100)
    soundfile.write(tmp_path / "short.wav", wave[:1600], 8000)
    soundfile.write(tmp_path / "silent.wav", 0 * wave, 8000)
    Image.new("RGB", (90, 50), (200, 30, 30)).save(tmp_path / "c.jpg")
    return tmp_path


def size(file):
    with Image.open(file) as image:
        return image.size


def test_pictures_of_sounds(finished, data, media):
    for sound in ("a.wav", "stereo.wav", "short.wav"):
        generate_picture(media / sound, media / "p.png", finished)
        assert size(media / "p.png") == (64, 64)
    first = (media / "p.png").read_bytes()
    generate_picture(media / "short.wav", media / "p.png", finished)
    assert (media / "p.png").read_bytes() == first
    generate_picture(media / "short.wav", media / "p.png", finished, seed=1)
    assert (media / "p.png").read_bytes() != first
    video = next((data / "video").iterdir())
    generate_picture(
        video, media / "new" / "q.png", finished, volume=-10.0, mix_with=media / "a.wav", mix_volume=3.0,
        image=media / "c.jpg", weight=0.3, samples=3,
    )  # fmt: skip
    assert size(media / "new" / "q.png")[0] > 3 * 64


def test_editing_and_inversion(finished, media, capsys):
    latents, files = media / "l.pt", (media / "a.wav", media / "e.png", finished)
    invert_picture(media / "c.jpg", media / "i.png", finished, save_to=latents, steps=3)
    assert "after 3 steps" in capsys.readouterr().err
    options = {"to": media / "stereo.wav", "inverted": latents}
    edit_picture(*files, **options)
    assert size(media / "e.png")[0] > 2 * 64  # as it is, and edited
    edit_picture(*files, image=media / "c.jpg", volume=10.0, steps=2)
    with pytest.raises(
        ValueError, match="--steps and --seed are of the inversion, which --inverted has done"
    ):
        edit_picture(*files, **options, steps=2)
    for given in ({"inverted": latents, "image": media / "c.jpg"}, {}):
        with pytest.raises(ValueError, match="give the picture to edit by --image, or by --inverted"):
            edit_picture(*files, volume=1.0, **given)
    save(latents, {})
    with pytest.raises(ValueError, match="holds no features and noise"):
        edit_picture(*files, **options)
    with pytest.raises(ValueError, match="nothing to edit"):
        edit_picture(*files, image=media / "c.jpg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": "silent.wav"}, "silent.wav: is silent$"),
        ({"audio": "none.wav"}, "none.wav: there is no such file"),
        ({"audio": "c.jpg"}, "c.jpg: can't be decoded"),
        ({"image": "a.wav"}, "a.wav: "),
        ({"out": "p.gif"}, "out must end in .png or .jpg"),
        ({"weight": 2.0, "image": "c.jpg"}, r"weight must be in \[0, 1\]"),
        ({"weight": 0.7}, "--weight has no effect without --image"),
        ({"mix_volume": 3.0}, "--mix-volume has no effect without --mix"),
    ],
)
def test_what_can_not_be_generated(finished, media, options, message):
    files = {name: media / value for name, value in options.items() if isinstance(value, str)}
    with pytest.raises(ValueError, match=message):
        generate_picture(
            **{"audio": media / "a.wav", "out": media / "p.png", "run": finished, **options, **files}
        )


def test_runs_that_can_not_be_opened(finished, generator, tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        open_sound2scene(tmp_path)
    with pytest.raises(ValueError, match="is a run of cmx train icgan, not of cmx train sound2scene"):
        open_sound2scene(generator)
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "sounds.pt").write_bytes((finished / "sounds.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"sounds.pt is not a readable checkpoint"):
        open_sound2scene(broken)
    (broken / "sounds.pt").unlink()
    with pytest.raises(ValueError, match=r"no sounds.pt; continue it with cmx train sound2scene --resume"):
        open_sound2scene(broken)
    moved = shutil.move(shutil.copytree(generator, tmp_path / "a"), tmp_path / "b")
    assert open_sound2scene(finished, icgan=moved).generator.dim_z == 10
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not readable JSON"):
        open_sound2scene(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "encoder = resnet50 needs its weights, --picture-encoder"),
        ({"encoder": "vgg"}, "there is no encoder 'vgg'"),
        (
            {"encoder": "resnet18=a", "picture_encoder": Path("b")},
            "give --encoder or --picture-encoder, not both",
        ),
        ({"set": [*GENERATOR, "encoder=pretrained"]}, "encoder = pretrained needs its name"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16; got 'fp8'"),
        ({"dataset": "imagenet"}, "dataset must be one of kinetics"),
        ({"set": [*GENERATOR, "neighbours=90"]}, "64 pictures are too few for 90 neighbours"),
    ],
)
def test_generators_that_can_not_be_trained(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_icgan(
            data, **{"dataset": "vggsound", "out": tmp_path, "preset": "demo", "set": GENERATOR, **options}
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "pictures"},
            "dataset must be one of kinetics, vggsound, folder, vegas, pairs; got 'pictures'",
        ),
        ({"set": [*SOUNDS, "batch=64"]}, "32 scenes to train on are fewer than a batch of 64"),
    ],
)
def test_sounds_that_can_not_be_trained(data, generator, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_sound2scene(data, generator, **{"out": tmp_path, "preset": "demo", "set": SOUNDS, **options})


def test_batches_are_the_same_from_any_step_on(data):
    scenes = SceneData(open_scenes("vggsound", data, "train"), size=64, moments=2, seconds=1, workers=0)
    features = torch.randn(64, 6)
    for batches in (
        ViewBatches(scenes, 12, 0, "cpu", hue=0.5),
        NeighbourBatches(scenes, features, features.flip(0), 3, 4, 0, "cpu"),
        SoundBatches(scenes, features, 12, 0, "cpu"),
    ):
        straight = batches(0)
        expected = [next(straight) for _ in range(5)]
        for start in (1, 3):
            resumed = batches(start)
            for batch in expected[start:]:
                again = next(resumed)
                assert all(again[name].equal(value) for name, value in batch.items())


def test_neighbours_are_near_and_not_the_picture_itself(data):
    scenes = SceneData(open_scenes("vggsound", data, "train"), size=16, moments=2, seconds=1, workers=0)
    angle = torch.linspace(0, 3, 64)
    features = torch.stack([angle.cos(), angle.sin()], 1)
    features[10] = float("nan")
    batches = NeighbourBatches(scenes, features, None, 2, 8, 0, "cpu")
    assert 10 not in batches.usable
    for row, near in enumerate(batches.usable[batches.nearest.long()]):
        own = int(batches.usable[row])
        assert own not in near and (near - own).abs().max() <= 4
    batch = next(batches(0))
    assert batch["picture"].shape == (8, 3, 16, 16) and batch["picture"].min() >= -1
    torch.testing.assert_close(batch["instance"].norm(dim=1), torch.ones(8))


def test_batches_go_on_without_pictures_that_break(data, tmp_path):
    broken = tmp_path / "clips"
    shutil.copytree(data, broken)
    scenes = open_scenes("vggsound", broken, "train")
    held = SceneData(scenes, size=16, moments=1, seconds=1, workers=0)
    batches = NeighbourBatches(held, torch.randn(32, 6), None, 3, 2, 0, "cpu")
    for entry in scenes.entries[:14]:
        entry.picture.write_bytes(b"")
    it = batches(0)
    sizes = [len(next(it)["picture"]) for _ in range(20)]
    assert set(sizes) == {1, 2} and len(held.skipped) > 7
