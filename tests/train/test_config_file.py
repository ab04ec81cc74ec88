"""--config gives a command's options; the command line wins, and what does not fit is named with its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from cmx_fast.options import BatchSize, Compile, LearningRate, Preset, Seeds, Set
from cmx_fast.train.config_file import with_config
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import Amount, Count, changes


@dataclass(frozen=True)
class Recipe(Presets):
    DEMO: ClassVar[dict[str, object]] = {"steps": 5}

    steps: Count = 10
    batch: Count = 8
    lr: Amount = 0.1
    levels: tuple[Count, ...] = (1, 2)


@pytest.fixture
def run():
    """Calls ``cmx train things`` with some words; gives what it was called with."""
    called = {}

    def train(
        data: Annotated[Path, typer.Option()],
        model: Annotated[list[str], typer.Option()] = ["all"],  # noqa: B006
        preset: Preset = "paper",
        seed: int = 0,
        seeds: Seeds = 1,
        batch_size: BatchSize = None,
        lr: LearningRate = None,
        share: float = 0.5,
        compile: Compile = False,
        set: Annotated[Set, Recipe] = [],  # noqa: B006
    ) -> None:
        """Train things."""
        recipe = Recipe.preset(preset, **changes(set, Recipe, batch=batch_size, lr=lr))
        called.update(
            data=data, model=model, seed=seed, seeds=seeds, share=share, compile=compile, recipe=recipe
        )

    app = typer.Typer()
    app.command()(with_config(train, "train things"))

    def call(*words: str) -> dict:
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return called

    return call


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "things.yaml").write_text(text)
        return str(tmp_path / "things.yaml")

    return write


def test_the_file_gives_options_and_fields(run, file):
    text = "data: here\nmodel: [a, b]\nseeds: 3\nshare: 1e-3\ncompile: true\nbatch-size: 4\n"
    given = run("--config", file(text + "set:\n  lr: 1e-2\n  levels: [3, 4]\n"))
    assert given == {
        "data": Path("here"), "model": ["a", "b"], "seed": 0, "seeds": 3, "share": 1e-3, "compile": True,
        "recipe": Recipe(batch=4, lr=0.01, levels=(3, 4)),
    }  # fmt: skip
    assert run("--config", file("data: here\nmodel: a"))["model"] == ["a"]
    assert run("--config", file(""), "--data", "there")["recipe"] == Recipe()


def test_the_command_line_wins_field_by_field(run, file):
    config = file("data: here\nseeds: 3\nlr: 0.2\nset:\n  steps: 7\n  batch: 4\n")
    given = run("--config", config, "--seeds", "2", "--data", "there", "--set", "steps=9", "--set", "lr=0.3")
    assert (given["data"], given["seeds"]) == (Path("there"), 2)
    assert given["recipe"] == Recipe(steps=9, batch=4, lr=0.3)
    assert run("--config", config, "--batch-size", "5")["recipe"] == Recipe(steps=7, batch=5, lr=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: 3", "sedes is no option of cmx train things; did you mean seeds"),
        ("steps: 3", r"steps is no option of cmx train things; it is a field of the recipe: set: \{steps"),
        ("config: other.yaml", "config is no option"),
        ("seeds: 0", "seeds: .*1"),
        ("seeds: many", "seeds: .*integer"),
        ("seeds: true", "seeds must be a number; got True"),
        ("data: [a, b]", r"data must be text; got \['a', 'b'\]"),
        ("model: [a, 3]", "model must be text; got 3"),
        ("compile: 3", "compile must be true or false; got 3"),
        ("batch-size: 0", "batch must be at least 1; got 0"),
        ("set: steps=3", "set must be a mapping of the recipe's fields; got 'steps=3'"),
        ("set: {step: 3}", r"the recipe has no step \(did you mean steps\?\)"),
        ("set: {steps: 1.5}", "steps must be a whole number; got '1.5'"),
        ("set: {steps: 0}", "steps must be at least 1; got 0"),
    ],
)
def test_what_does_not_fit_is_named(run, file, text, message):
    with pytest.raises(ValueError, match=rf"things\.yaml: {message}"):
        run("--config", file(text), "--data", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- data", "must hold names and values"),
        ("data: [", "is no YAML: .*line 1"),
        ("a: \t- b", "is no YAML"),
    ],
)
def test_files_of_another_shape_are_refused_in_one_line(run, file, text, message):
    with pytest.raises(ValueError, match=message) as error:
        run("--config", file(text), "--data", "here")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--config none.yaml: there is no such file"):
        run("--config", "none.yaml")


def test_a_run_is_repeated_by_its_config(run, tmp_path):
    config = {
        "command": "train things", "preset": "demo", "recipe": Recipe.preset("demo", batch=3).as_dict(),
        "seeds": [2, 3], "models": ["a"], "data": "here", "compile": False, "fingerprint": "ab", "skipped": [],
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    given = run("--config", str(file))
    assert given["recipe"] == Recipe(steps=5, batch=3)
    assert (given["seed"], given["seeds"], given["model"], given["data"]) == (2, 2, ["a"], Path("here"))
    file.write_text(json.dumps({**config, "command": "train others"}))
    with pytest.raises(ValueError, match="is of a run of cmx train others, not of cmx train things"):
        run("--config", str(file))
