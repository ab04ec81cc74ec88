"""The layer law: imports run one way, and each layer stays what it is for."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("needs a source tree", allow_module_level=True)

# layer -> the layers it may import besides itself; helpers without a layer (cmx_fast._extras) are open to all
LAW = {
    "kernels": set(),
    "reference": set(),
    "ops": {"kernels", "reference"},
    "nn": {"ops"},
    "distributed": {"ops"},
    "losses": {"distributed", "ops"},
    "cluster": {"ops"},
    "networks": {"losses", "nn", "ops"},
    "data": {"nn", "ops", "reference"},
    "simulate": {"data"},
    "prepare": {"data"},
    "evaluate": {"cluster", "data", "networks", "nn", "ops"},
    "train": {"data", "distributed", "losses", "networks", "nn", "ops"},
    "systems": {
        "cluster", "data", "distributed", "evaluate", "losses", "networks", "nn", "ops", "simulate", "train",
    },
    # Which system embeds or segments is looked up by name when a run is opened.
    "search": {"data", "evaluate", "networks", "systems", "train"},
    "demo": {"data", "evaluate", "search", "segment", "train"},
    "explain": {"data", "evaluate", "systems", "train"},
    "segment": {"data", "evaluate", "search", "systems", "train"},
    "benchmarks": {
        "cluster", "data", "evaluate", "kernels", "losses", "networks", "nn", "ops", "reference", "simulate",
        "systems", "train",
    },
    "info": {"ops"},
    # The systems' recipes are looked up by name.
    "recipe": {"systems", "train"},
    "patch": {"cluster", "losses"},
    # --config is read before a command runs.
    "cli": {"train"},
    "__main__": {"cli"},
}  # fmt: skip
SYSTEMS = sorted(path.parent.name for path in (ROOT / "cmx_fast/systems").glob("*/__init__.py"))


def package_modules() -> list[tuple[Path, str]]:
    """Every file of the package with its dotted name."""
    folders = {"cmx_fast": "cmx_fast", "cmx_fast.kernels": "kernels", "cmx_fast.benchmarks": "benchmarks"}
    return [
        (path, ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]))
        for package, folder in folders.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imported(path: Path, module: str) -> set[str]:
    """Absolute names of what a module imports, wherever in the file, with relative imports resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = [*package, *(node.module.split(".") if node.module else [])]
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def layer(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "cmx_fast" and len(parts) > 1 and parts[1] in LAW else None


MODULES = package_modules()


@pytest.mark.parametrize("own", LAW)
def test_imports_follow_the_layer_law(own):
    broken = [
        f"{module} imports {name}"
        for path, module in MODULES
        if layer(module) == own
        for name in sorted(imported(path, module))
        if layer(name) not in {None, own, *LAW[own]}
    ]
    assert not broken, f"{own} may import {sorted(LAW[own]) or 'no other layer'}"


@pytest.mark.parametrize("own", SYSTEMS)
def test_systems_are_independent_of_each_other(own):
    inside = f"cmx_fast.systems.{own}."
    others = tuple(f"cmx_fast.systems.{name}" for name in SYSTEMS if name != own)
    broken = [
        f"{module} imports {name}"
        for path, module in MODULES
        if module.startswith(inside)
        for name in sorted(imported(path, module))
        if name.startswith(others)
    ]
    assert not broken


def test_imports_have_no_circle():
    """Wherever in a file an import stands, and for whatever it is: a circle is two files that are one."""
    names = {module.removesuffix(".__init__") for _, module in MODULES}
    needs = {
        module.removesuffix(".__init__"): {
            known
            for name in imported(path, module)
            # ``from package.module import thing`` names the module, and its package's __init__ is read before it.
            for known in (name, name.rpartition(".")[0])
            if known in names and not module.startswith(f"{known}.")
        }
        for path, module in MODULES
    }
    try:
        tuple(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_every_folder_has_a_place_in_the_law():
    folders = {path.parent.name for path in (ROOT / "cmx_fast").glob("*/__init__.py")}
    assert folders <= LAW.keys()


def test_kernels_import_only_torch_and_triton():
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path, module in MODULES:
        if layer(module) == "kernels":
            foreign = {name for name in imported(path, module) if layer(name) != "kernels"}
            assert {name.split(".")[0] for name in foreign} <= allowed, path


@pytest.mark.parametrize(
    ("pattern", "folder", "suffixes", "instead"),
    [
        (
            r"torch\.library|nn\.Module",
            "kernels",
            {".py"},
            "cmx_fast/ops registers, losses and models hold modules",
        ),
        (r"\b(at|c10)::", "csrc", {".cpp", ".cu", ".cuh", ".h"}, "torch::stable, torch::headeronly"),
        (r"-march|-mtune", "csrc", {".cpp", ".h"}, "target attributes and run-time dispatch"),
    ],
)
def test_sources_keep_to_their_interface(pattern, folder, suffixes, instead):
    uses = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not uses, instead
