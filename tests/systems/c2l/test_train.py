"""The whole of ``cmx train c2l`` on a few real files, interrupted and resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from atr_files import write_pictures
from interruptions import assert_same_run, timeless, train_through_stops
from PIL import Image
from torchvision.models import resnet18

from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.segment.commands import segment as segment_command
from cmx_fast.segment.segmenters import open_segmenter
from cmx_fast.systems.c2l import evaluation
from cmx_fast.systems.c2l.commands import evaluate_c2l, train_c2l
from cmx_fast.systems.c2l.evaluation import open_split, predictions
from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.c2l.segmenter import C2LSegmenter

TINY = [
    "size=32", "width=16", "heads=2", "atoms=8", "part_width=4", "epochs=2", "batch=4", "cluster_batch=4",
    "init_batches=2", "init_iterations=3", "evaluations=2", "dff_stage=2", "dff_iterations=20",
]  # fmt: skip
MODELS = ["picie", "part", "part+pixel", "c2l", "dff"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("people"), {"train": 10, "val": 2, "test": 5})


def train(data, out, *more, **options):
    train_c2l(data, out=out, preset="demo", set=[*TINY, *more], **options)


@pytest.fixture(scope="module")
def finished(data, one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    train(data, out)
    return out


def test_a_run_leaves_everything_a_reader_needs(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["models"] == MODELS
    assert config["recipe"]["part_weight"] == 0.5
    for model in MODELS:
        assert (finished / "seed0" / f"{model}.pt").exists()
    assert list(json.loads((finished / "results.json").read_text())["seeds"]) == MODELS
    assert (finished / "metrics.csv").read_text().startswith("stage,step,")


def test_metrics_of_an_epoch_follow_the_schedule(finished):
    rows = [row for row in timeless(finished) if row["stage"] == "seed0/c2l"]
    clusterings = [row for row in rows if "k-means" in row]
    assert [row["step"] for row in clusterings] == [0, 2]  # 10 pictures in batches of 4, the rest left over
    assert all(1 / 3 <= row["largest cluster"] <= 1 for row in clusterings)
    assert [row["step"] for row in rows if "accuracy" in row] == [2, 4]
    steps = [row for row in rows if "loss" in row]
    assert steps[-1]["step"] == 4
    assert {"cluster", "part", "code", "active"} <= steps[-1].keys()
    assert all(row["lr"] == 3e-4 for row in steps)


def test_the_last_look_is_the_result(finished):
    results = json.loads((finished / "results.json").read_text())
    for model in MODELS[:-1]:
        looks = [row for row in timeless(finished) if row["stage"] == f"seed0/{model}" and "accuracy" in row]
        assert looks[-1]["accuracy"] == results["seeds"][model][0]["accuracy"]


def test_an_interrupted_run_has_the_same_numbers(data, finished, tmp_path, monkeypatch):
    begun = train_through_stops(lambda: train(data, tmp_path / "run", resume=True), monkeypatch)
    assert begun == [f"seed0/{model}" for model in MODELS[:-1]]
    assert_same_run(tmp_path / "run", finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()


def test_the_dictionary_stays_in_the_unit_ball(finished):
    weights = torch.load(finished / "seed0" / "c2l.pt", weights_only=True)["module"]
    assert (weights["pixels.code.dictionary"].norm(dim=0) <= 1 + 1e-6).all()


def test_models_of_a_seed_start_from_one_encoder(data, tmp_path):
    train(data, tmp_path, "lr=0.0", "epochs=1", "cluster_in_train_mode=False", model=["picie", "c2l"])
    one, other = (
        torch.load(tmp_path / "seed0" / f"{name}.pt", weights_only=True)["module"]
        for name in ("picie", "c2l")
    )
    for name in ("encoder.stem.0.weight", "encoder.lateral.3.bias"):
        assert torch.equal(one[name], other[name])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A pretrained encoder's file: torchvision's ResNet-18 with random weights."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), file)
    return file


def test_a_fixed_encoder_is_run_once_for_all_models(data, weights, tmp_path, monkeypatch):
    calls = []
    maps = VisualEncoder.maps
    monkeypatch.setattr(
        VisualEncoder, "maps", lambda self, images: calls.append(len(images)) or maps(self, images)
    )
    settings = ["kept_views=2", "part=assignment", "suppressed=0.5", "init=k-means++"]
    train(data, tmp_path / "run", *settings, encoder=f"resnet18={weights}")
    assert sum(calls) == 10 + 5 + 2 * 2 * 10  # training and held-out pictures, two draws of two views
    results = (tmp_path / "run" / "results.json").read_text()
    assert list(json.loads(results)["seeds"]) == MODELS
    state = torch.load(tmp_path / "run" / "seed0" / "c2l.pt", weights_only=True)["module"]
    assert state["encoder.lateral.0.weight"].shape == (16, 128, 1, 1)  # stride 8 is the finest
    assert not any("trunk" in name for name in state)
    evaluate_c2l(tmp_path / "run")
    assert sum(calls) == 55
    assert (tmp_path / "run" / "results.json").read_text() == results
    test, segmenter = (
        open_split("atr", data, "test", C2LRecipe(size=32), "cpu"),
        C2LSegmenter.from_run(tmp_path / "run"),
    )
    test.maps = torch.from_numpy(np.load(tmp_path / "run" / "maps_test.npy"))
    ((index, clusters),) = predictions(segmenter.network, test, 0)
    pictures = torch.stack([test.dataset.load_image(i) for i in index.tolist()]) / 255
    moved = weights.with_suffix(".moved")
    weights.rename(moved)
    try:
        with pytest.raises(FileNotFoundError, match="has the file moved"):
            open_segmenter(tmp_path / "run")
        open_segmenter(tmp_path / "run", encoder_file=moved)
    finally:
        moved.rename(weights)
    agree = segmenter.segment(pictures) == segmenter.class_of[clusters]  # of maps that were kept as float16
    assert agree.float().mean() > 0.99


def test_a_fixed_encoder_refuses_what_it_cannot_take(data, weights, tmp_path):
    with pytest.raises(ValueError, match="none of 64 or more"):
        train(data, tmp_path, "map_stride=64", encoder=f"resnet18={weights}")
    with pytest.raises(ValueError, match="kept_views is of the maps of --encoder, which is not given"):
        train(data, tmp_path, "kept_views=2")
    with pytest.raises(ValueError, match="with --encoder there is none"):
        train(data, tmp_path, encoder=f"resnet18={weights}", imagenet=weights)


def test_the_demo_takes_imagenet_weights(data, weights, tmp_path):
    train(data, tmp_path, "epochs=1", model=["dff"], imagenet=weights)
    assert json.loads((tmp_path / "config.json").read_text())["recipe"]["backbone"] == "resnet18"


def test_bfloat16_trains_what_was_asked_for(data, tmp_path):
    train(data, tmp_path, model=["c2l"], precision="bf16")
    assert list(json.loads((tmp_path / "results.json").read_text())["seeds"]) == ["c2l"]


def test_files_give_what_the_memory_holds(data):
    kept = evaluation.open_split("atr", data, "test", C2LRecipe.preset("demo", size=32), "cpu")
    read = evaluation.open_split("atr", data, "test", C2LRecipe.preset("demo", size=32, cache=False), "cpu")
    for (rows, images), (same, read_images) in zip(kept.in_order(2), read.in_order(2)):
        assert torch.equal(rows, same)
        assert torch.equal(images, read_images)
        assert images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of paper, demo, photos; got 'huge'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16; got 'fp8'"),
        (
            {"model": ["clip"]},
            r"model must be one or more of picie, part, part\+pixel, c2l, dff, all; got clip",
        ),
        ({"set": ["clusters=1"]}, "clusters must be at least 2; got 1"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(evaluation, "open_split", None)
    with pytest.raises(ValueError, match=message):
        train_c2l(tmp_path, dataset="atr", out=tmp_path / "run", **options)


def test_missing_imagenet_weights_are_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_split", None)
    with pytest.raises(FileNotFoundError, match="no ImageNet weights at"):
        train_c2l(tmp_path, dataset="atr", out=tmp_path / "run", imagenet=tmp_path / "resnet18.pth")


def test_pictures_are_segmented_as_the_evaluation_does(data, finished):
    """The files' labels, at the evaluation's size, are its clusters' classes."""
    segmenter = C2LSegmenter.from_run(finished)
    test = open_split("atr", data, "test", segmenter.recipe, "cpu")
    assert segmenter.classes == tuple(test.class_names)
    for index, clusters in predictions(segmenter.network, test, 0):
        pictures = torch.stack([test.dataset.load_image(i) for i in index.tolist()]) / 255
        assert segmenter.segment(pictures).equal(segmenter.class_of[clusters])
    met = json.loads((finished / "clusters.json").read_text())["c2l"][0]
    assert [segmenter.classes[label] for label in segmenter.class_of.tolist()] == met
    labels = segmenter.segment_file(test.dataset.path(0))
    width, height = Image.open(test.dataset.path(0)).size
    assert labels.shape == (height, width)
    assert C2LSegmenter.from_run(finished, model="picie").network.represent(labels) is labels
    with pytest.raises(
        ValueError, match="no model 'dff' of seed 0 to open; it has picie, part, part\\+pixel, c2l"
    ):
        C2LSegmenter.from_run(finished, model="dff")


def test_ones_own_photographs_are_segmented(data, finished, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    pictures = sorted((data / "humanparsing/JPEGImages").iterdir())[:2]
    for picture in pictures:
        (files / picture.name).write_bytes(picture.read_bytes())
    (files / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (files / "notes.txt").touch()
    for _ in range(2):  # the second time among its own label maps
        segment_command(finished, [files], files / "out")
        said = capsys.readouterr().out
        assert "2 pictures, 3 classes" in said and "not looked at: 1 .txt" in said and "broken.jpg: " in said
    assert (files / "out/segments.html").read_text().count("data:image/png") == 2
    header, *rows = (files / "out/shares.csv").read_text().splitlines()
    assert header == "picture,background,upper body,lower body" and len(rows) == 2
    for row in rows:
        assert sum(map(float, row.split(",")[1:])) == pytest.approx(1, abs=2e-4)


def test_without_an_evaluation_clusters_have_numbers(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "clusters.json").unlink()
    assert C2LSegmenter.from_run(tmp_path / "run").classes == ("cluster 0", "cluster 1", "cluster 2")
    evaluate_c2l(tmp_path / "run", clusters=4)
    assert not (tmp_path / "run" / "clusters.json").exists()  # these clusters are no others' names


def test_photographs_without_masks_are_clustered_and_shown(data, tmp_path, capsys):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for picture in (data / "humanparsing/JPEGImages").iterdir():
        Image.open(picture).save(photographs / f"{picture.stem}.webp")
    (photographs / "notes.txt").touch()
    out = tmp_path / "run"
    train_c2l(photographs, out=out, preset="demo", model=["c2l", "dff"], set=TINY)
    said = capsys.readouterr()
    assert "test: " in said.out and "acc." not in said.out
    config, results = (json.loads((out / name).read_text()) for name in ("config.json", "results.json"))
    assert config["dataset"] == "folder" and config["classes"] == []
    for (shares,) in results["cluster shares"].values():
        assert len(shares) == 3 and sum(shares) == pytest.approx(1)
    report = (out / "report.html").read_text()
    assert report.count("data:image/png") >= 2 and "nobody knows its name" in report
    evaluate_c2l(out, split="val")
    assert json.loads((out / "results.json").read_text())["split"] == "val"
    with pytest.raises(ValueError, match="--clusters is for pictures with masks"):
        evaluate_c2l(out, split="val", clusters=4)
    segmenter = C2LSegmenter.from_run(out)
    assert segmenter.classes == ("cluster 0", "cluster 1", "cluster 2")


def test_plain_pictures_with_masks_are_measured(data, tmp_path):
    from picture_sets import write_masked

    write_masked(tmp_path / "pictures", {"train": 8, "test": 3})
    train_c2l(tmp_path / "pictures", out=tmp_path / "run", preset="demo", model=["picie"], set=TINY)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "picie" in results["seeds"] and "largest_class" in results
    with pytest.raises(ValueError, match="--merge and --skip-chictopia are of ATR's pictures"):
        evaluate_c2l(tmp_path / "run", skip_chictopia=True)
