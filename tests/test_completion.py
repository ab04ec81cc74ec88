"""Shell completion, by the protocol that bash speaks: words and a position in the environment, choices as lines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cmx_fast import cli


def environment(line: str) -> dict[str, str]:
    """What bash sets when tab is pressed at the end of a line."""
    position = len(line.split()) - (not line.endswith(" "))
    return {"_CMX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(position)}


def completed(line: str) -> list[str]:
    result = CliRunner().invoke(cli.app, [], prog_name="cmx", env=environment(line))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("cmx tr", ["train"]),
        ("cmx train c", ["csir", "c2l", "cmac", "classify"]),
        ("cmx bench d", ["data"]),
        ("cmx train cmac --batch", ["--batch-size"]),
        ("cmx train cmac --conf", ["--config"]),
        ("cmx evaluate c2l --dev", ["--device"]),
        ("cmx train cmac --preset ", ["paper", "demo", "ablation", "speaker"]),
        ("cmx train c2l --preset p", ["paper", "photos"]),
        ("cmx train cmac --set bank", ["bank=", "bank_batch="]),
        ("cmx train cmac --model sc", ["scratch"]),
        ("cmx train segment --attention oc", ["ocnet", "ocnet-pyramid", "ocnet-asp"]),
        ("cmx train cmac --dataset k", ["kinetics"]),
        ("cmx train csir --data x --precision ", ["fp32", "bf16"]),
        ("cmx recipe s", ["sound2scene"]),
    ],
)
def test_commands_options_and_choices_are_completed(line, choices):
    assert completed(line) == choices


def test_every_option_of_every_command_can_be_completed():
    for path in cli.COMMANDS:
        options = {name for option in cli.open_command(path).params for name in option.opts}
        options = {name for name in options if name.startswith("--")}
        assert options <= set(completed(f"cmx {' '.join(path)} --")), path


def test_completion_loads_no_torch():
    code = """
import sys
from cmx_fast import cli
try:
    cli.app(prog_name="cmx")
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    for line, choice in (("cmx train cmac --pre", "--precision"), ("cmx train cmac --model at", "attention")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment(line),
            capture_output=True,
            text=True,
            check=False,
        )
        assert choice in done.stdout.split() and done.stderr.split()[-1] == "False"
