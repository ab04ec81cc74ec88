"""The system that docs/architecture.md writes out: built from the page, it trains, stops, resumes and is evaluated."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from interruptions import assert_same_run, train_through_stops
from typer.testing import CliRunner

pytest.importorskip("faiss", reason="needs the cpu or cuda extra")

import cmx_fast.systems
from cmx_fast import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
if not PAGE.exists():
    pytest.skip("needs a clone, whose docs no distribution has", allow_module_level=True)


def blocks(language: str) -> list[str]:
    """The section's fenced blocks of a language."""
    section = PAGE.read_text().partition("\n## Add a system\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """The page's folder among the systems, and its lines among the commands."""
    folder = tmp_path / "systems" / "pairs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Pairs."""\n')
    for block in blocks("python"):
        path = re.match(r"# cmx_fast/systems/pairs/(\w+\.py)\n", block)
        assert path is not None, f"no path in {block.splitlines()[0]!r}"
        (folder / path[1]).write_text(block)
    monkeypatch.setattr(cmx_fast.systems, "__path__", [*cmx_fast.systems.__path__, str(folder.parent)])
    (lines,) = blocks("text")
    monkeypatch.setattr(cli, "COMMANDS", cli.COMMANDS | ast.literal_eval(f"{{{lines}}}"))
    monkeypatch.setattr(cli, "app", cli.new_app())
    yield
    for name in [name for name in sys.modules if name.startswith("cmx_fast.systems.pairs")]:
        del sys.modules[name]


def cmx(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments, prog_name="cmx", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_s_system_trains_resumes_and_is_evaluated(pairs, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert "Two towers" in cmx("train", "pairs", "--out", str(straight), "--set", "steps=2")
    config = json.loads((straight / "config.json").read_text())
    assert config["command"] == "train pairs" and config["recipe"]["steps"] == 2
    assert {"metrics.jsonl", "metrics.csv", "results.json"} <= {path.name for path in straight.iterdir()}
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 2, 2] and "loss" in rows[0] and "R@1" in rows[1]

    command = importlib.import_module("cmx_fast.systems.pairs.commands").train_pairs
    begun = train_through_stops(lambda: command(out=stopped, set=["steps=2"], resume=True), monkeypatch)
    assert begun == ["seed0/towers"]
    assert_same_run(stopped, straight)

    again = tmp_path / "again"
    cmx("train", "pairs", "--config", str(straight / "config.json"), "--out", str(again))
    assert_same_run(again, straight)

    before = (straight / "results.json").read_text()
    (straight / "results.json").unlink()
    assert "Two towers" in cmx("evaluate", "pairs", "--run", str(straight))
    assert (straight / "results.json").read_text() == before


def test_the_page_s_system_learns(pairs, tmp_path):
    cmx("train", "pairs", "--out", str(tmp_path / "run"), "--preset", "demo", "--seed", "3", "--seeds", "2")
    assert {path.name for path in (tmp_path / "run").glob("seed*")} == {"seed3", "seed4"}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["mean_and_spread"]["towers"]["R@1"][0] > 0.5  # by chance 0.01
