"""What the distributions contain and what the native build decides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("needs a source tree", allow_module_level=True)
tomllib = pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {"cmx_fast": "cmx_fast", "cmx_fast.benchmarks": "benchmarks", "cmx_fast.kernels": "kernels"}


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def installed_files() -> set[str]:
    """The paths inside the wheel of what lies in the package folders, without build products and committed results."""
    return {
        "/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])
        for package, folder in MAPPED.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".so", ".pyc"} and "results" not in path.parts
    }


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[set[str], Path]:
    """The names in the source distribution, and the pure-Python wheel built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    build = "from setuptools import build_meta as b; b.build_{}({!r})"
    made = run("-c", build.format("sdist", str(folder)), CMX_NO_EXTENSION="1")
    assert made.returncode == 0, made.stderr
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    tree = folder / archive.name.removesuffix(".tar.gz")
    made = run("-c", build.format("wheel", str(folder)), cwd=tree, CMX_NO_EXTENSION="1")
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}, wheel


def test_kernels_refuse_a_second_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with pytest.raises(ImportError, match=r"cmx_fast\.kernels"):
        import kernels  # noqa: F401


def test_wheel_holds_the_package_and_nothing_else(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == installed_files()
    assert wheel.name.endswith("py3-none-any.whl"), "without the extension the wheel is for every platform"


def test_sdist_holds_the_repository(distributions):
    """All that its own tests and documentation read, without the files of Git, CI and editors."""
    names, _ = distributions
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs the repository")
    tracked = {name for name in listed.stdout.split("\0")[:-1] if (ROOT / name).exists()}
    assert {name for name in tracked - names if not name.startswith(".")} == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_every_dependency_is_pinned():
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    wanted += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    names = {re.split(r"[<>=!~ ;\[]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - pins.keys() == {"cmx-fast"}, "extras name each other by the package itself"
    assert lines == sorted(lines), "constraints.txt is sorted"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"FORCE_CUDA": "yes"}, "FORCE_CUDA='yes'; expected 0, 1 or unset"),
        ({"FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}, "FORCE_CUDA=1, but this is missing"),
        ({"FORCE_CUDA": "0"}, "CUDA files not built (FORCE_CUDA=0)"),
    ],
)
def test_build_says_what_it_decided(environment, says):
    made = run("setup.py", "--name", **environment)
    assert says in made.stdout + made.stderr
    assert (made.returncode == 0) == (environment["FORCE_CUDA"] == "0")


def test_pure_python_build_needs_no_torch():
    """Building without the extension imports nothing but setuptools."""
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--name']"
    code += "; runpy.run_path('setup.py')"
    made = run("-c", code, CMX_NO_EXTENSION="1")
    assert made.returncode == 0, made.stderr
    assert "installing pure Python" in made.stdout
