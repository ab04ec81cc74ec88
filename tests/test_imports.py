"""The cost of an import: nothing before it is needed, and a message where an extra is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cmx_fast
from cmx_fast.cli import COMMANDS
from cmx_fast.recipe import RECIPES


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def imported(statement: str) -> set[str]:
    """The modules that a statement leaves imported in a fresh interpreter."""
    done = run(f"import sys\n{statement}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_imports_nothing_before_it_is_asked():
    modules = imported("import cmx_fast")
    assert not modules & {"torch", "numpy"}
    assert {name for name in modules if name.startswith("cmx_fast")} == {"cmx_fast"}


def test_the_overview_of_commands_needs_no_torch():
    code = "import sys\nfrom cmx_fast.cli import app\napp(['--help'], standalone_mode=False)\n"
    code += "print('torch' in sys.modules)"
    assert (done := run(code)).stdout.splitlines()[-1] == "False", done.stderr


def test_the_options_of_every_command_are_read_without_torch():
    modules = "\n".join(f"import {target.partition(':')[0]}" for target, _ in COMMANDS.values())
    assert not imported(modules) & {"torch", "torchvision", "lightning_fabric", "scipy", "sklearn"}


def test_every_recipe_is_read_without_torch():
    assert "torch" not in imported("\n".join(f"import {kind.partition(':')[0]}" for kind in RECIPES.values()))


def test_losses_import_neither_dynamo_nor_an_extra():
    modules = imported("from cmx_fast.losses import ClipLoss, InfoNCE, NTXentLoss, SupConLoss")
    assert "torch._dynamo" not in modules
    assert not modules & {
        "torchvision",
        "torchaudio",
        "typer",
        "rich",
        "sklearn",
        "scipy",
        "lightning_fabric",
    }


def test_subpackages_are_attributes():
    code = "import cmx_fast\nassert cmx_fast.losses.ClipLoss.__name__ == 'ClipLoss'\n"
    code += "assert cmx_fast.losses.MemoryBank.__name__ == 'MemoryBank'\n"
    code += "assert all(getattr(cmx_fast, name).__name__ == f'cmx_fast.{name}' for name in cmx_fast.__all__)"
    assert (done := run(code)).returncode == 0, done.stderr
    assert set(cmx_fast.__all__) <= set(dir(cmx_fast))
    with pytest.raises(AttributeError, match="'cmx_fast' has no attribute 'loss'"):
        cmx_fast.loss  # noqa: B018


#: Python's own way of saying that a module is not there.
HIDDEN = """import sys
sys.modules |= dict.fromkeys(("typer", "torchvision", "torchaudio", "scipy", "sklearn", "rich", "PIL"))
"""


def test_the_core_runs_without_extras_and_names_what_is_missing():
    code = HIDDEN + "import torch, cmx_fast\nx = torch.randn(8, 4, requires_grad=True)\n"
    code += "cmx_fast.losses.ClipLoss()(x, x, 10.0).backward()\n"
    code += "print(cmx_fast.cluster.KMeans(2).fit(torch.randn(9, 3)).labels_.shape)"
    assert (done := run(code)).returncode == 0, done.stderr
    done = run(HIDDEN + "import cmx_fast.systems.csir.model")
    assert done.stderr.strip().splitlines()[-1] == (
        "cmx_fast._extras.MissingExtraError: PIL, rich, scipy, sklearn, torchaudio, torchvision, typer are not "
        "installed; pip install 'cmx-fast[train]' brings what training, evaluation, data sets and the command line "
        "need"
    )
    done = run(
        HIDDEN + "import runpy\nsys.argv = ['cmx', 'info']\nrunpy.run_module('cmx_fast', run_name='__main__')"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cmx: PIL, rich, ")
    assert "Traceback" not in done.stderr
