"""CMAC in two processes: they share evaluation and fine-tuning, and the first one writes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("av", reason="needs the media extra")
pytest.importorskip("sklearn", reason="needs the evaluate extra")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch.distributed without gloo", allow_module_level=True)

from distributed_cmac import train_and_fine_tune
from process_groups import run_ranks

from cmx_fast.simulate.commands import simulate_clips
from cmx_fast.systems.cmac.commands import evaluate_cmac


def test_two_processes_share_evaluation_and_fine_tuning(tmp_path):
    simulate_clips(tmp_path / "clips", clips=40, width=48, height=32, seconds=1.25, fps=12, workers=1)
    first, second = run_ranks(train_and_fine_tune, 2, tmp_path)
    run = tmp_path / "run"
    shared = json.loads((run / "results.json").read_text())
    assert shared["recordings"] == 7 and shared["protocol"]["split"] == "val"
    evaluate_cmac(run, recordings=7)
    alone = json.loads((run / "results.json").read_text())
    assert alone["seeds"]["cmac"][0].keys() == shared["seeds"]["cmac"][0].keys()
    for measure, value in alone["seeds"]["cmac"][0].items():
        assert shared["seeds"]["cmac"][0][measure] == pytest.approx(value, abs=1e-6), measure
    assert len(first) == len(second) == 4  # batches of eight, four recordings each
    together = [i for batch in (*first, *second) for i in batch]
    assert len(together) == len(set(together)) == 32
    results = json.loads((run / "finetune-kinetics-cmac" / "results.json").read_text())
    assert results["recordings"][0]["test"] == {"listed": 8, "used": 8, "looped": 0}
    assert results["accuracy"] * 8 == pytest.approx(round(results["accuracy"] * 8))
    assert torch.load(run / "finetune-kinetics-cmac" / "fold1.pt", weights_only=True)["module"]
