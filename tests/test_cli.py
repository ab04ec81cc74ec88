"""The cmx command: what it lists, forwards, imports and how it fails."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from cmx_fast import __version__, cli


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, arguments, prog_name="cmx")


def test_version():
    assert invoke("--version").output.strip() == f"cmx_fast {__version__}"


def test_help_names_every_command():
    overview = invoke("--help").output
    for path in cli.COMMANDS:
        text = overview if len(path) == 1 else invoke(path[0], "--help").output
        assert path[-1] in text


@pytest.mark.parametrize("path", cli.COMMANDS, ids=" ".join)
def test_every_command_exists_and_explains_itself(path):
    module, name = cli.COMMANDS[path][0].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert f"cmx {' '.join(path)}" in result.output


@pytest.fixture
def forwarded(monkeypatch):
    """A command ``cmx info`` that records how it was called."""
    calls = []
    module = types.ModuleType("fake_commands")

    def record(out: str, rooms: int = 24) -> None:
        if rooms < 1:
            raise ValueError(f"rooms must be positive, got {rooms}")
        calls.append((out, rooms))

    module.record = record
    monkeypatch.setitem(sys.modules, "fake_commands", module)
    monkeypatch.setitem(cli.COMMANDS, ("info",), ("fake_commands:record", "Records."))
    return calls


def test_options_reach_the_function(forwarded):
    assert invoke("info", "somewhere", "--rooms", "3").exit_code == 0
    assert forwarded == [("somewhere", 3)]


def test_unknown_option_is_refused(forwarded):
    result = invoke("info", "somewhere", "--walls", "3")
    assert result.exit_code == 2
    assert "--walls" in result.output
    assert forwarded == []


def test_errors_are_one_line(forwarded, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cmx", "info", "somewhere", "--rooms", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == "cmx: rooms must be positive, got 0"


def test_traceback_on_request(forwarded, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cmx", "--traceback", "info", "somewhere", "--rooms", "0"])
    with pytest.raises(ValueError, match="rooms must be positive"):
        cli.main()


def test_overview_imports_no_heavy_package():
    heavy = ["matplotlib", "scipy", "torchaudio", "torchvision", "lightning_fabric", "faiss", "triton"]
    code = f"import sys, cmx_fast.cli; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
