"""The whole of ``cmx train segment`` and ``cmx train classify`` on a few files of every layout."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F
from atr_files import write_pictures
from interruptions import assert_same_run, timeless, train_through_stops
from picture_sets import write_classes, write_cub, write_masked, write_voc, write_voc_objects
from torchvision.models import shufflenet_v2_x0_5

from cmx_fast.segment.segmenters import open_segmenter
from cmx_fast.systems.recognition.commands import (
    evaluate_classify,
    evaluate_detect,
    evaluate_segment,
    train_classify,
    train_detect,
    train_segment,
)
from cmx_fast.systems.recognition.data import Data
from cmx_fast.systems.recognition.evaluation import predictions
from cmx_fast.systems.recognition.options import SEGMENT, of_task
from cmx_fast.systems.recognition.segmenter import RecognitionSegmenter

TINY = [
    "size=32", "width=16", "heads=2", "codewords=4", "proposal_width=8", "batch=3", "epochs=2", "scales=2",
    "proposal_epochs=1", "evaluations=2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are too small to share out, and on a busy machine threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    torch.save(shufflenet_v2_x0_5(weights=None).state_dict(), file)
    return f"torchvision:shufflenet_v2_x0_5={file}"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("people"), {"train": 7, "val": 2, "test": 3})


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return write_cub(tmp_path_factory.mktemp("birds"), train=7, test=3)


def segment(data, encoder, out, *more, **options):
    options = {"preset": "demo", "attention": ["none", "danet"], **options}
    train_segment(data, encoder, out=out, set=[*TINY, *more], **options)


@pytest.fixture(scope="module")
def finished(people, encoder, one_thread, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    segment(people, encoder, out, dataset="atr")
    return out


def costless(run):
    results = json.loads((run / "results.json").read_text())
    return {name: value for name, value in results.items() if name != "costs"}


def test_a_run_leaves_everything_a_reader_needs(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["models"] == ["none", "danet"] and config["classes"][0] == "background"
    results = json.loads((finished / "results.json").read_text())
    assert results["split"] == "test" and list(results["seeds"]) == ["none", "danet"]
    for seeds in results["seeds"].values():
        assert len(seeds) == 1 and all(0 <= score["miou"] <= score["accuracy"] <= 1 for score in seeds)
    assert len(results["by_class"]["danet"]["iou"]) == len(results["by_class"]["danet"]["recall"]) == 3
    costs = results["costs"]
    assert costs["danet"]["parameters"] > costs["none"]["parameters"]
    assert costs["danet"]["kept"] > costs["none"]["kept"] and costs["none"]["seconds"] > 0
    state = torch.load(finished / "seed0" / "none.pt", weights_only=True)["module"]
    assert not any(name.startswith("encoder.") for name in state)


def test_the_network_is_looked_at_on_validation_pictures(finished):
    rows = [row for row in timeless(finished) if row["stage"] == "seed0/danet"]
    assert [row["step"] for row in rows if "miou" in row] == [2, 4]
    assert {"loss", "positions", "channels"} <= next(row for row in rows if "loss" in row).keys()


def test_the_report_stands_alone_and_shows_pictures_masks_and_predictions(finished):
    html = (finished / "report.html").read_text()
    assert 'id="scores"' in html and 'id="iou"' in html and 'id="recall"' in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert html.count("data:image/png;base64,") == 3 * (1 + 2)
    assert html.count("<svg") == 1
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing from elsewhere


def test_an_interrupted_run_has_the_same_numbers(people, encoder, finished, tmp_path, monkeypatch):
    def train():
        segment(people, encoder, tmp_path / "run", dataset="atr", resume=True)

    begun = train_through_stops(train, monkeypatch)
    assert begun == ["seed0/none", "seed0/danet"]
    assert_same_run(tmp_path / "run", finished)
    assert costless(tmp_path / "run") == costless(finished)


def test_kept_maps_give_the_same_and_stale_ones_are_computed_anew(
    people, encoder, finished, tmp_path, capsys
):
    for out in ("one", "two"):
        segment(people, encoder, tmp_path / out, dataset="atr", features=tmp_path / "maps")
        assert costless(tmp_path / out) == costless(finished)
        assert not (tmp_path / out / "maps").exists() and (finished / "maps" / "segment-atr-val.npy").exists()
    assert {file.name for file in (tmp_path / "maps").glob("*.npy")} == {
        f"segment-atr-{split}.npy" for split in ("train", "val", "test")
    }
    assert "anew" not in capsys.readouterr().err
    segment(people, encoder, tmp_path / "three", "finest=16", dataset="atr", features=tmp_path / "maps")
    assert (
        "segment-atr-train.npy holds features of other pictures or of another encoder"
        in capsys.readouterr().err
    )


def test_evaluation_of_the_validation_part(finished):
    before = costless(finished)
    evaluate_segment(finished, split="val")
    results = costless(finished)
    looks = [row for row in timeless(finished) if row["stage"] == "seed0/danet" and "miou" in row]
    assert results["split"] == "val"
    assert results["seeds"]["danet"][0]["miou"] == pytest.approx(looks[-1]["miou"], abs=1e-6)
    evaluate_segment(finished)
    assert costless(finished) == before
    with pytest.raises(ValueError, match="split must be val or test; got 'train'"):
        evaluate_segment(finished, split="train")
    with pytest.raises(ValueError, match="is a run of cmx train segment, not of cmx train classify"):
        evaluate_classify(finished)


def test_plain_folders_and_voc_are_segmented(encoder, tmp_path):
    folder = write_masked(tmp_path / "folder", {"train": 4, "val": 1, "test": 2})
    voc = write_voc(tmp_path / "voc", {"train": 4, "val": 2})
    for name, data in (("folder", folder), ("voc", voc)):
        segment(data, encoder, tmp_path / name / "run", "epochs=1", dataset=name, attention=["encnet"])
    results = json.loads((tmp_path / "voc" / "run" / "results.json").read_text())
    assert results["by_class"]["encnet"]["recall"][1] is None  # there is no aeroplane


def test_pictures_are_segmented_as_the_evaluation_does(people, encoder, finished, tmp_path):
    segmenter = RecognitionSegmenter.from_run(finished, model="danet")
    data = Data(SEGMENT, "atr", people, segmenter.recipe, segmenter.encoder, "cpu")
    pictures = data.pictures("test")
    shown = torch.stack([pictures.load_image(i) for i in range(len(pictures))]) / 255
    for batch, outputs in predictions(segmenter.network, data.examples("test", "danet")):
        logits = F.interpolate(outputs["logits"], (segmenter.size,) * 2, mode="bilinear")
        agree = segmenter.segment(shown[batch["index"]]) == logits.argmax(
            1
        )  # of maps that were kept as float16
        assert agree.float().mean() > 0.99
    assert segmenter.classes == tuple(pictures.class_names)
    assert segmenter.segment_file(pictures.path(0)).max() < len(segmenter.classes)
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        RecognitionSegmenter.from_run(finished, encoder_file=tmp_path / "none.pth")
    assert RecognitionSegmenter.from_run(finished).network.attention is not segmenter.network.attention


def test_an_encoder_that_learns_changes_with_the_head(people, encoder, tmp_path):
    segment(people, encoder, tmp_path / "run", "freeze=false", "epochs=1", dataset="atr", attention=["se"])
    state = torch.load(tmp_path / "run" / "seed0" / "se.pt", weights_only=True)["module"]
    before = torch.load(encoder.partition("=")[2], weights_only=True)
    learnt = state["encoder.trunk.model.conv1.0.weight"]
    assert not learnt.equal(before["conv1.0.weight"])
    segmenter = open_segmenter(tmp_path / "run")
    assert isinstance(segmenter, RecognitionSegmenter) and segmenter.origin["model"] == "se"
    assert segmenter.encoder.trunk.model.conv1[0].weight.equal(learnt.to(segmenter.device))
    assert segmenter.segment(torch.rand(2, 3, 20, 50)).shape == (2, 20, 50)


def test_every_module_classifies_birds(birds, encoder, tmp_path):
    names = of_task("classify")
    train_classify(
        birds, encoder, "cub", ["all"], out=tmp_path / "run", preset="demo", set=[*TINY, "epochs=1"]
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["seeds"]) == names and {"fcan", "ra-cnn", "two-level", "recurrent", "stn"} <= set(
        names
    )
    assert (tmp_path / "run" / "seed0" / "ra-cnn-proposals.pt").exists()
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 3 and "001.Red_Bird" in html
    evaluate_classify(tmp_path / "run")
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["seeds"] == results["seeds"]


def test_class_folders_have_no_boxes(encoder, tmp_path, capsys):
    data = write_classes(tmp_path / "data", {"train": 4, "test": 2})
    with pytest.raises(ValueError, match="attention two-level learns from boxes"):
        train_classify(data, encoder, attention=["two-level"], out=tmp_path / "run", preset="demo", set=TINY)
    train_classify(
        data,
        encoder,
        attention=["none", "fcan"],
        out=tmp_path / "run",
        preset="demo",
        set=[*TINY, "epochs=1"],
    )
    said = capsys.readouterr().err
    assert "train: 4 pictures\n" in said and "val: 2 pictures, the split test of these data\n" in said


def test_colours_are_learnt(encoder, tmp_path):
    """Red and blue squares, by what the colours leave in random maps."""
    data = write_classes(tmp_path / "data", {"train": 12, "val": 2, "test": 6})
    train_classify(data, encoder, out=tmp_path / "run", preset="demo", set=[*TINY, "epochs=20", "lr=0.02"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seeds"]["none"][0]["accuracy"] == 1


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_objects_are_detected_in_vocs_layout(encoder, tmp_path, freeze):
    data = write_voc_objects(tmp_path / "voc", {"train": 4, "val": 2})
    more = ["size=64", "epochs=1", f"freeze={freeze}"]
    train_detect(data, encoder, out=tmp_path / "run", preset="demo", set=[*TINY, *more])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["seeds"]) == ["ssd", "rpn"] and results["largest_class"] is None
    precision = results["by_class"]["ssd"]["precision"]
    assert [number for number, value in enumerate(precision, 1) if value is not None] == [2, 3]
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 2 * (2 + 2)
    evaluate_detect(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == results["seeds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of paper, demo; got 'huge'"),
        ({"attention": ["fcan"]}, "attention fcan is made for cmx train classify"),
        ({"dataset": "cub"}, "dataset must be one of folder, voc, atr; got 'cub'"),
        ({"encoder": None}, "--encoder names the pretrained encoder, e.g. efficientnet-lite0"),
        ({"encoder": "resnet-18"}, "there is no encoder 'resnet-18'"),
        ({"set": ["size=100"]}, "size must be a positive multiple of 32; got 100"),
    ],
)
def test_bad_options_are_refused_before_the_data_are_read(tmp_path, encoder, options, message, monkeypatch):
    monkeypatch.setattr(Data, "pictures", None)
    with pytest.raises(ValueError, match=message):
        train_segment(**{"data": tmp_path, "encoder": encoder, "out": tmp_path / "run", **options})


def test_data_smaller_than_a_batch_are_refused(people, encoder, tmp_path):
    with pytest.raises(ValueError, match="7 pictures to train on are fewer than a batch of 8"):
        segment(people, encoder, tmp_path / "run", "batch=8", dataset="atr")
