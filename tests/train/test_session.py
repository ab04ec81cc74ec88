from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe as Recipe
from cmx_fast.train import session as module
from cmx_fast.train.loop import Interrupted
from cmx_fast.train.run_folder import FinishedRun, RunFolder
from cmx_fast.train.session import Session


def new_session(**options) -> Session:
    return Session("train pairs", Recipe(width=16), precision="fp32", **options)


def files(*names: str) -> SimpleNamespace:
    return SimpleNamespace(skipped=[(Path(name), "missing") for name in names])


def test_the_config_has_the_options_that_the_command_has(tmp_path):
    with new_session(preset="demo").recording(tmp_path / "one", {"seed": 3}, resume=False) as run:
        assert run.config == {
            "command": "train pairs",
            "preset": "demo",
            "recipe": Recipe(width=16).as_dict(),
            "precision": "fp32",
            "seed": 3,
        }
    assert (tmp_path / "one" / "metrics.csv").exists()
    parallel = new_session(compile=False, sync_bn=False, fsdp=False)
    with parallel.recording(tmp_path / "two", {}, resume=False, splits=(files("a.wav"),)) as run:
        assert run.config["processes"] == 1 and run.config["fsdp"] is False
        assert run.config["skipped"] == [["a.wav", "missing"]]


def test_files_that_break_are_named_once_when_training_ends(tmp_path, capsys):
    session, split, later = new_session(), files("before.mp4"), files()
    with session.recording(tmp_path, {}, resume=False, splits=(split,)):
        session.watch(later)
        for growing in (split, later):
            growing.skipped.append((Path("broken.mp4"), "cut short"))
        assert "broken.mp4" not in capsys.readouterr().err
    assert capsys.readouterr().err == "files broke during training; 1 left out:\n  broken.mp4: cut short\n"


def test_an_interruption_says_how_to_go_on(tmp_path, capsys):
    def stopped():
        split = files()
        with new_session().recording(tmp_path, {}, resume=False, splits=(split,)):
            split.skipped.append((Path("broken.mp4"), "cut short"))
            raise Interrupted("stopped in towers after step 3 of 9")

    with pytest.raises(typer.Exit) as end:
        stopped()
    assert end.value.exit_code == 130
    said = capsys.readouterr().err
    assert "stopped in towers after step 3 of 9; continue with the same command and --resume" in said
    assert said.count("broken.mp4") == 1
    assert not (tmp_path / "metrics.csv").exists()


def test_commands_for_one_process_refuse_several(monkeypatch):
    monkeypatch.setattr(module, "new_fabric", lambda *_, **__: SimpleNamespace(world_size=2))
    with pytest.raises(ValueError, match="cmx train pairs runs in one process; got a world of 2"):
        new_session()
    new_session(sync_bn=False)


def test_a_finished_run_reads_what_was_written(tmp_path):
    config = {"command": "train pairs", "recipe": {"width": 16}, "seeds": [0, 1], "models": ["a", "b"]}
    run = RunFolder(tmp_path, config)
    for seed in (0, 1):
        for name in ("a", "b"):
            run.log({"stage": f"seed{seed}/{name}", "step": 1, "loss": 0.5})
            run.finish(f"seed{seed}/{name}", {"weight": seed})
    finished = run.finished()
    assert finished.recipe(Recipe) == Recipe(width=16) and finished.rows() == run.rows()
    assert list(finished.models()) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert finished.weights("seed1/a") == {"weight": 1}
    finished.write_results({"accuracy": 1.0})
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy": 1.0}
    with pytest.raises(
        ValueError, match=r"is not finished: no heads.pt; continue it with cmx train pairs --resume"
    ):
        finished.weights("heads")
    with pytest.raises(ValueError, match="is a run of cmx train pairs, not of cmx train csir"):
        RunFolder.open_finished(tmp_path, "train csir")
    (tmp_path / "seed1" / "b.pt").unlink()
    with pytest.raises(ValueError, match=r"is not finished: no seed1/b.pt"):
        RunFolder.open_finished(tmp_path, "train pairs")


def test_a_run_opens_the_preferred_of_its_models(tmp_path):
    run = FinishedRun(tmp_path, {"models": ["scratch", "single", "attention"], "seeds": [2, 5]})
    assert run.choose(("whole", "attention", "single")) == ("attention", 2)
    assert run.choose(("whole", "attention", "single"), "single", 5) == ("single", 5)
    for model, seed in (("whole", None), ("scratch", None), (None, 3)):
        with pytest.raises(ValueError, match="to open; it has single, attention of the seeds 2, 5"):
            run.choose(("whole", "attention", "single"), model, seed)
    with pytest.raises(ValueError, match="no model 'whole' of seed 2 to open; it has none of the seeds"):
        run.choose(("whole",))
