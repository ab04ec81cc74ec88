"""Frozen encoders on other data sets, from a run's weights and real files; and their fine-tuning."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="needs the media extra")
pytest.importorskip("av", reason="needs the media extra")
pytest.importorskip("sklearn", reason="needs the evaluate extra")

import soundfile
from interruptions import assert_same_run, train_through_stops
from video_files import write_video

from cmx_fast.data.sets.audio_sets import esc50
from cmx_fast.networks.weights import save
from cmx_fast.systems.cmac import downstream, supervised
from cmx_fast.systems.cmac.commands import evaluate_finetune, evaluate_linear, evaluate_retrieval
from cmx_fast.systems.cmac.downstream import nearest, open_model, over_time, over_time_and_frequency
from cmx_fast.systems.cmac.model import CMAC
from cmx_fast.systems.cmac.recipe import CMACRecipe, FinetuneRecipe
from cmx_fast.systems.cmac.sounds import playable

TINY = {
    "size": 32, "short_side": 32, "frames": 4, "fps": 6.0, "seconds": 0.5, "width": 8, "audio_width": 8, "filters": 16,
    "embedding": 8, "clips": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, with weights that nothing has trained."""
    torch.manual_seed(0)
    folder, recipe = tmp_path_factory.mktemp("run"), CMACRecipe.preset("demo", **TINY)
    config = {
        "command": "train cmac",
        "recipe": recipe.as_dict(),
        "seeds": [0],
        "models": ["cmac"],
        "precision": "fp32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save(folder / "seed0" / "cmac.pt", {"stage": "seed0/cmac", "module": CMAC(recipe).state_dict()})
    return folder


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory):
    """Two classes that differ in their pictures: bright and dark; one video is shorter than a clip."""
    root = tmp_path_factory.mktemp("ucf")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Bright\n2 Dark\n")
    listed = {"train": [], "test": []}
    for label, lightness in (("Bright", 1), ("Dark", 0)):
        (root / "UCF-101" / label).mkdir(parents=True)
        for number in range(5):
            name = f"{label}/v_{label}_g0{number}_c01.avi"
            # UCF101's videos are MPEG-4 in AVI, most without sound.
            options = {"codec": "mpeg4", "audio": None, "size": (64, 48)}
            write_video(root / "UCF-101" / name, 32 if number else 12, times=None, **options)
            listed["train" if number < 4 else "test"].append(f"{name} {2 - lightness}\n")
    for split, lines in listed.items():
        for fold in (1, 2, 3):
            (lists / f"{split}list0{fold}.txt").write_text("".join(lines))
    return root


def write_sounds(root):
    """ESC-50's layout with two classes, low and high, in five folds."""
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    rows, time = ["filename,fold,target,category,esc10,src_file,take"], np.arange(5 * 16000) / 16000
    for fold in range(1, 6):
        for target, (label, pitch) in enumerate((("low", 200), ("high", 3000))):
            name = f"{fold}-{target}.wav"
            soundfile.write(root / "audio" / name, 0.3 * np.sin(2 * np.pi * (pitch + 9 * fold) * time), 16000)
            rows.append(f"{name},{fold},{target},{label},False,1,A")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))


def test_neighbours_of_the_same_class():
    gallery = torch.eye(4)
    queries = torch.tensor([[1, 0.1, 0, 0], [0, 0, 0.2, 1.0]])
    figures = nearest(queries, torch.tensor([0, 0]), gallery, torch.tensor([0, 0, 0, 1]))
    assert figures == {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0, "chance": 0.75}


def test_retrieval_of_videos_without_sound(run, ucf101, capsys):
    evaluate_retrieval(run, ucf101)
    result = json.loads((run / "retrieval-ucf101.json").read_text())
    assert set(result["mean"]) == {"R@1", "R@5", "R@10", "chance"} and result["mean"]["chance"] == 0.5
    assert "gallery: 8 videos" in capsys.readouterr().err
    assert result["recordings"] == [
        {
            "gallery": {"listed": 8, "used": 8, "looped": 2},
            "queries": {"listed": 2, "used": 2, "looped": 0},
        }
    ]


def test_linear_classification_of_sounds_over_five_folds(run, tmp_path, capsys):
    write_sounds(tmp_path)
    (tmp_path / "audio" / "1-0.wav").write_bytes(b"")
    evaluate_linear(run, tmp_path)
    result = json.loads((run / "linear-esc50-cmac.json").read_text())
    assert len(result["folds"]) == 5
    assert result["mean"]["accuracy"] == 1.0  # random features tell a low tone from a high one
    assert "1-0.wav" in capsys.readouterr().err
    assert result["recordings"][0] == {"train": {"listed": 8, "used": 8}, "test": {"listed": 2, "used": 1}}


def test_baselines_of_linear_classification(run, tmp_path):
    write_sounds(tmp_path)
    accuracies = {}
    for model, pool in (("scratch", "levels"), ("log-mel", "mean"), ("cmac", "bands")):
        evaluate_linear(run, tmp_path, fold=1, model=model, pool=pool, machine="ridge")
        accuracies[model] = json.loads((run / f"linear-esc50-{model}.json").read_text())["mean"]["accuracy"]
    assert accuracies == {"scratch": 1.0, "log-mel": 1.0, "cmac": 1.0}
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    features = over_time(maps)
    assert features.shape == (1, 12) and features[0, :6].tolist() == [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]
    torch.testing.assert_close(features[0, 6:], torch.full((6,), 1.25**0.5))
    three = over_time_and_frequency(maps)[0].reshape(3, 2).T
    torch.testing.assert_close(
        three, torch.tensor([[5.5, 1.25**0.5, (32 / 3) ** 0.5], [17.5, 1.25**0.5, (32 / 3) ** 0.5]])
    )
    with pytest.raises(ValueError, match="pool must be mean, bands or levels; got 'max'"):
        evaluate_linear(run, tmp_path, pool="max")
    with pytest.raises(ValueError, match="machine must be svm or ridge; got 'tree'"):
        evaluate_linear(run, tmp_path, machine="tree")
    with pytest.raises(ValueError, match="supervised needs a model with an encoder; log-mel has none"):
        evaluate_linear(run, tmp_path, model="log-mel", supervised=True)
    with pytest.raises(ValueError, match="model must be one of the run's cmac, scratch, log-mel; got 'x'"):
        evaluate_linear(run, tmp_path, model="x")


def test_an_encoder_trained_on_each_fold_s_labels(run, tmp_path, monkeypatch):
    write_sounds(tmp_path)
    monkeypatch.setattr(supervised, "EPOCHS", 2)
    evaluate_linear(run, tmp_path, fold=1, model="scratch", supervised=True, machine="ridge")
    result = json.loads((run / "linear-esc50-scratch-supervised.json").read_text())
    assert result["mean"]["accuracy"] == 1.0
    trained = []
    for _ in range(2):
        model, _ = open_model(run, "cmac", 0, "cpu")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        supervised.train_encoder(model, esc50(tmp_path, "train", 1), 2.0, 0)
        after = model.state_dict()
        changed = {name for name in before if not before[name].equal(after[name])}
        assert changed and all(name.startswith("audio.encoder.") for name in changed) and not model.training
        trained.append(after)
    assert all(trained[0][name].equal(trained[1][name]) for name in trained[0])  # the same twice


def test_the_encoder_is_trained_from_the_run_s_first_seed(run, tmp_path, monkeypatch):
    write_sounds(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "seed0").rename(copy / "seed7")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"seeds": [7]}))
    seeds = []
    monkeypatch.setattr(downstream, "train_encoder", lambda *arguments: seeds.append(arguments[-1]))
    for model in ("cmac", "scratch"):
        evaluate_linear(copy, tmp_path, fold=1, model=model, supervised=True, machine="ridge")
    assert seeds == [7, 7]


def test_the_length_of_a_telephone_s_sound_is_known(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "memo.m4a"
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        wave = 0.5 * np.sin(np.arange(16000, dtype=np.float32) / 9)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    length, problem = playable(path, 0.9)
    assert length == pytest.approx(1, abs=0.15) and problem is None
    assert playable(path, 2.0)[1].startswith("too short: 1")
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable audio file" in playable(path, 0.9)[1]


def test_linear_classification_of_scenes_in_both_protocols(run, tmp_path):
    time = np.arange(2 * 16000) / 16000
    for folder in ("scenes_stereo", "scenes_stereo_testset"):
        (tmp_path / folder).mkdir()
        for number in range(1, 11):
            for name, pitch in (("bus", 200), ("park", 3000)):
                wave = 0.3 * np.sin(2 * np.pi * (pitch + 9 * number) * time)
                soundfile.write(tmp_path / folder / f"{name}{number:02d}.wav", wave, 16000)
    for dataset, folds in (("dcase2013", 5), ("dcase2014", 1)):
        evaluate_linear(run, tmp_path, dataset)
        result = json.loads((run / f"linear-{dataset}-cmac.json").read_text())
        assert len(result["folds"]) == folds and result["mean"]["accuracy"] == 1.0
    assert result["recordings"] == [{"train": {"listed": 20, "used": 20}, "test": {"listed": 20, "used": 20}}]


TUNING = ["epochs=1", "clips=1", "batch=4", "warmup_epochs=0"]


def test_fine_tuning(run, ucf101, tmp_path, monkeypatch):
    def tune(out, **options):
        evaluate_finetune(run, ucf101, fold=0, out=out, set=TUNING, **options)

    tune(tmp_path / "tuned")
    results = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert len(results["folds"]) == 3 and 0 <= results["accuracy"] <= 1
    begun = train_through_stops(lambda: tune(tmp_path / "stopped", resume=True), monkeypatch)
    assert begun == ["fold1", "fold2", "fold3"]
    assert_same_run(tmp_path / "stopped", tmp_path / "tuned")
    assert json.loads((tmp_path / "stopped" / "results.json").read_text()) == results
    tuned = torch.load(tmp_path / "tuned" / "fold1.pt", weights_only=True)["module"]
    before = open_model(run, "cmac", 0, "cpu")[0].video.encoder.state_dict()
    assert not tuned["encoder.stem.0.weight"].equal(before["stem.0.weight"])


def test_the_rate_warms_up_and_falls_twice():
    recipe = FinetuneRecipe()
    rates = [recipe.rate(step, 120) for step in (0, 10, 20, 59, 60, 100)]
    assert rates[0] < 0.01 and rates[1] == pytest.approx(0.5, abs=0.01)
    assert rates[2:] == pytest.approx([1, 1, 0.05, 0.0025])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "imagenet"},
            "dataset must be one of kinetics, vggsound, ucf101, hmdb51, folder; got 'imagenet'",
        ),
        ({"fold": 4}, "fold must be 1 to 3, or 0 for all; got 4"),
        ({"model": "contrast"}, "model must be one of the run's cmac; got 'contrast'"),
        ({"seed": 3}, "seed must be one of the run's 0; got 3"),
    ],
)
def test_refuses(run, ucf101, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(run, ucf101, **options)
