"""--logger: every stage's metrics, and a missing package that is named before work starts."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from cmx_fast._extras import MissingExtraError
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe as Recipe
from cmx_fast.train.session import Session


def log(folder, *names: str) -> None:
    """A run that logs one row of each of two stages."""
    session = Session("train pairs", Recipe(), precision="fp32", device="cpu", loggers=names)
    with session.recording(folder, {}, resume=False) as run:
        for stage in ("seed0/towers", "seed1/towers"):
            run.log({"stage": stage, "step": 1, "loss": 0.5})


def test_tensorboard_reads_what_was_logged(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.importorskip("tensorboardX", reason="needs the tensorboard extra")
    log(tmp_path, "tensorboard")
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    written = events.read_bytes()
    assert b"seed0/towers/loss" in written and b"seed1/towers/loss" in written
    assert "0.5" in (tmp_path / "metrics.csv").read_text()


def test_wandb_stays_offline_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        name="a",
        id="1",
        define_metric=lambda *a, **k: None,
        log=calls.append,
        finish=lambda: calls.append("finished"),
    )
    module = SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log(tmp_path / "a", "wandb")
    options, first, second, finished = calls
    assert options["mode"] == "offline" and options["dir"] == tmp_path / "a"
    assert options["config"]["command"] == "train pairs"
    assert first == {"seed0/towers/loss": 0.5, "step": 1} and second.keys() == {"seed1/towers/loss", "step"}
    assert finished == "finished"
    monkeypatch.setenv("WANDB_MODE", "online")
    log(tmp_path / "b", "wandb")
    assert calls[4]["mode"] == "online"


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_named_before_work_starts(name, package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda module, *rest: None if module == "tensorboard" else find(module, *rest),
    )
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"{package} is not installed; pip install 'cmx-fast\[{name}\]'"
    ):
        log(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="logger must be tensorboard or wandb; got 'mlflow'"):
        log(tmp_path / "run", "mlflow")
