"""``cmx evaluate c2l`` on weights that nobody has trained, and its report."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from atr_files import write_pictures

from cmx_fast.data.sets.masked_pictures import MaskedPictures
from cmx_fast.networks.weights import save
from cmx_fast.systems.c2l.commands import evaluate_c2l
from cmx_fast.systems.c2l.evaluation import new_model, open_split, predictions, segment
from cmx_fast.systems.c2l.recipe import C2LRecipe

RECIPE = C2LRecipe.preset(
    "demo", size=32, width=16, heads=2, atoms=8, part_width=4, clusters=3, dff_stage=2, dff_iterations=20
)
MODELS = ["picie", "c2l", "dff"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("c2l")
    data = write_pictures(root / "people", {"train": 2, "val": 3, "test": 5})
    run = root / "run"
    for seed in (0, 1):
        for name in MODELS:
            torch.manual_seed(seed)
            model = new_model(name, RECIPE)
            if name != "dff":
                model.centroids.normal_()
            if name == "picie":
                save(run / f"seed{seed}" / "encoder.pt", {"module": model.encoder.state_dict()})
            save(run / f"seed{seed}" / f"{name}.pt", {"module": model.state_dict()})
    config = {
        "command": "train c2l", "data": str(data), "recipe": RECIPE.as_dict(), "seeds": [0, 1], "models": MODELS,
        "imagenet": None, "precision": "fp32", "classes": open_split("atr", data, "test", RECIPE, "cpu").class_names,
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    rows = [
        {"stage": f"seed{seed}/{name}", "step": step, "accuracy": 0.5, "cluster": 1.0, "largest cluster": 0.4}
        for seed in (0, 1)
        for name in MODELS[:-1]
        for step in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_c2l(run)
    return run


def test_results_have_every_reading(run):
    results = json.loads((run / "results.json").read_text())
    assert list(results["seeds"]) == MODELS
    for seeds in results["seeds"].values():
        assert len(seeds) == 2
        for scores in seeds:
            assert {"accuracy", "miou_matched", "miou_clusters", "miou_majority"} <= scores.keys()
            assert 1 / 3 <= scores["accuracy"] <= 1
    first, second = (scores["accuracy"] for scores in results["seeds"]["picie"])
    mean, deviation = results["mean_and_spread"]["picie"]["accuracy"]
    assert mean == pytest.approx((first + second) / 2)
    assert deviation == pytest.approx(abs(first - second) / 2**0.5)


def test_baselines_are_read_as_the_models_are(run):
    baselines = json.loads((run / "results.json").read_text())["baselines"]
    assert list(baselines["seeds"]) == ["largest", "place", "colour", "frozen", "probe"]
    means = {name: values["accuracy"][0] for name, values in baselines["mean_and_spread"].items()}
    assert means["probe"] > 0.5
    majority = baselines["mean_and_spread"]["colour"]["accuracy_majority"][0]
    assert means["largest"] <= majority <= 1
    by_class = [baselines["seeds"]["probe"][0][f"iou {name}"] for name in ("background", "upper body")]
    assert all(0 <= value <= 1 for value in by_class)


def test_another_split_with_other_clusters(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    merge = tmp_path / "merge.json"
    merge.write_text(json.dumps({"person": list(range(1, 18)), "background": [0]}))
    evaluate_c2l(tmp_path / "run", split="val", clusters=5, merge=merge)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["split"], results["clusters"]) == ("val", 5)
    assert "iou person" in results["seeds"]["c2l"][0]
    assert "val: 3 pictures, 5 clusters" in capsys.readouterr().out


def test_a_run_without_its_first_encoder_says_so(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "seed1" / "encoder.pt").unlink()
    evaluate_c2l(tmp_path / "run")
    assert "does not keep its first encoder" in capsys.readouterr().err
    baselines = json.loads((tmp_path / "run" / "results.json").read_text())["baselines"]
    assert list(baselines["seeds"]) == ["largest", "place", "colour"]


def test_largest_class_is_the_masks_own(run):
    pictures = open_split("atr", run.parent / "people", "test", RECIPE, "cpu")
    masks = torch.stack([pictures.dataset.load_mask(i) for i in range(5)])
    share = (masks == 0).double().mean().item()
    assert json.loads((run / "results.json").read_text())["largest_class"] == pytest.approx(share)


def test_segment_counts_every_pixel_and_keeps_the_examples(run):
    pictures = open_split("atr", run.parent / "people", "test", RECIPE, "cpu")
    model = new_model("picie", RECIPE)
    model.centroids.normal_()
    counts, kept = segment(model, pictures, 0, [3, 1])
    assert counts.sum() == 5 * 32 * 32
    found = {
        int(i): row for index, labels in predictions(model, pictures, 0) for i, row in zip(index, labels)
    }
    assert torch.equal(kept, torch.stack([found[3], found[1]]))
    assert model.training


def test_report_stands_alone_and_has_its_parts(run):
    html = (run / "report.html").read_text()
    assert 'id="scores"' in html
    assert html.count("data:image/jpeg;base64,") == 5
    assert html.count("data:image/png;base64,") == 5 * (1 + len(MODELS))
    assert html.count("<svg") == 1
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing from elsewhere
    order = [
        html.index(f"<td>{title}</td>")
        for title in ("PiCIE", "C2L: + part contrast, pixel consistency with sparse code", "DFF")
    ]
    assert order == sorted(order)


def test_evaluation_needs_a_finished_run(run, tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        evaluate_c2l(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(ValueError, match="not finished: no seed0/picie.pt"):
        evaluate_c2l(tmp_path)


def test_masks_are_read_once_for_all_models_and_baselines(run, monkeypatch):
    read = []
    load = MaskedPictures.load_mask
    monkeypatch.setattr(
        MaskedPictures, "load_mask", lambda self, i: read.append((self.ids[i], i)) or load(self, i)
    )
    monkeypatch.setattr("cmx_fast.systems.c2l.evaluate.write_report", lambda *arguments: "report.html")
    evaluate_c2l(run)
    assert (
        len(read) == len(set(read)) == 2 + 5
    )  # the training pictures' for the classifier, the held-out ones'


def test_kept_masks_are_the_data_sets(run):
    config = json.loads((run / "config.json").read_text())
    pictures = open_split("atr", config["data"], "test", RECIPE, "cpu")
    kept = pictures.masks(torch.tensor([3, 0]))
    assert kept.dtype == torch.int64
    assert kept.equal(torch.stack([pictures.dataset.load_mask(3), pictures.dataset.load_mask(0)]))
