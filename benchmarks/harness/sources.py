"""Finds the source files behind a figure, and those that have changed since it was measured.

The files are an operator's own and those that they include or import, read from the sources themselves: a list kept by
hand would be forgotten. A change of a comment counts; the listing only names it, and its author knows.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
#: Operators of cases that are several operators, or a layer of PyTorch's own.
STEMS = {"gates": ("channel_gate", "position_gate")}
LAYERS = {"encoding": ("cmx_fast/nn/attention/encoding.py",)}
KERNELS = {
    "cpu": ("csrc/{}.cpp", "csrc/cpu/ops/{}_kernel.cpp"),
    "cuda": ("csrc/{}.cpp", "kernels/{}.py", "kernels/{}/launchers.py", "csrc/cuda/{}_kernel.cu"),
}
#: The repository's packages and their folders.
PACKAGES = {"cmx_fast.kernels": "kernels", "cmx_fast.ops": "cmx_fast/ops"}
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
#: A header in this folder declares tables of loops, which a *_kernels.h defines.
TABLE = re.compile(r"\w+_kernels\(\);")
#: Files that all operators share and none spends its time in: checks of arguments, the choice of an implementation, and
#: those that put all operators' loops together.
SHARED = {"cmx_fast/ops/_checks.py", "cmx_fast/ops/_implementations.py", "csrc/cpu/simd/kernels.cpp"}


class Older(NamedTuple):
    """A row of a results file whose kernel has changed, or may have changed."""

    file: str
    case: str
    date: str
    changed: tuple[str, ...] | None  # None: the row has no hashes

    def __str__(self) -> str:
        if self.changed is None:
            return f"{self.file}: {self.case} ({self.date}): unknown, no hashes to compare"
        shown = ", ".join(self.changed[:3]) + (", ..." if len(self.changed) > 3 else "")
        return f"{self.file}: {self.case} ({self.date}): older than {shown}"


def source_files(operator: str, device: str) -> list[str]:
    """The files of an operator on a device ("cpu" or "cuda"), by their paths in the repository."""
    if operator in LAYERS:
        return sorted(LAYERS[operator])
    patterns = ("cmx_fast/ops/{}.py", *KERNELS[device])
    files: set[str] = set()
    waiting = [pattern.format(stem) for stem in STEMS.get(operator, (operator,)) for pattern in patterns]
    while waiting:
        path = waiting.pop()
        if path in files | SHARED or not (ROOT / path).is_file():
            continue
        files.add(path)
        waiting += _needs(path)
    return sorted(files)


def source_hashes(operator: str, device: str) -> dict[str, str]:
    """The hashes of :func:`source_files`."""
    return {path: _hash(path) for path in source_files(operator, device)}


def changed_since(record: Mapping[str, Any], device: str) -> tuple[str, ...] | None:
    """The files newer than a record of ``measure``; None where it has no hashes, or the sources aren't here."""
    before, now = record.get("sources"), source_hashes(record["operator"], device)
    if not before or not now:
        return None
    return tuple(path for path, fingerprint in now.items() if before.get(path) != fingerprint)


def older_rows(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[Older]:
    """The rows of results, by the names of their files, that are older than their kernel or have no hashes."""
    for file, document in documents.items():
        for name, record in document["cases"].items():
            changed = changed_since(record, document["machine"]["device"])
            if changed is None or changed:
                yield Older(file, name, record.get("date", "no date"), changed)


def _hash(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:16]


@functools.cache
def _needs(path: str) -> tuple[str, ...]:
    """The files of the repository that a file includes or imports, or that define what it declares."""
    if path.endswith(".py"):
        return tuple(_imported(path))
    return tuple(_included(path))


def _imported(path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        # `from cmx_fast.ops import _checks` names a file, too.
        for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            for package, folder in PACKAGES.items():
                if module.startswith(f"{package}."):
                    yield f"{folder}/{module.removeprefix(package + '.').replace('.', '/')}.py"


def _included(path: str) -> Iterator[str]:
    here = Path(path).parent
    for name in _includes(path):
        yield from (f"{folder}/{name}" for folder in dict.fromkeys((here.as_posix(), "csrc")))
    if path.endswith(".h"):
        yield from (path.removesuffix(".h") + suffix for suffix in (".cpp", ".cu"))
        if TABLE.search((ROOT / path).read_text()):
            for loops in (ROOT / "csrc/cpu").rglob("*_kernels.h"):
                name = loops.relative_to(ROOT).as_posix()
                if path.removeprefix("csrc/") in _includes(name):
                    yield name


@functools.cache
def _includes(path: str) -> Iterable[str]:
    return tuple(INCLUDE.findall((ROOT / path).read_text()))
