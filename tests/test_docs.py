"""The documentation agrees with the tree: links, paths, commands, options, targets and examples."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cmx_fast import cli
from cmx_fast._extras import MissingExtraError
from cmx_fast.benchmarks.harness import registry

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("needs a source tree", allow_module_level=True)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("benchmarks", "cmx_fast", "csrc", "docs", "examples", "kernels", "tests")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; "": of none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def spans(page: Path) -> list[str]:
    """Code within lines."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The names that a page's headings get as targets of links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def changed_to(diff: str) -> str:
    """A diff's text after the change."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


def python(page: Path) -> list[str]:
    return [*blocks(page, "python"), *map(changed_to, blocks(page, "diff"))]


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of every call of a program, in blocks without a language and in spans; a comment ends a line."""
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    called = []
    for line in [*lines, *spans(page)]:
        line = line.partition(" #")[0].strip()
        if line.startswith(f"{program} "):
            called.append(line.split()[len(program.split()) :])
    return called


@each_page
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links {target}"


@each_page
def test_named_paths_exist(page):
    for span in spans(page):
        path = span.partition("::")[0].rstrip("/")
        if re.fullmatch(r"[\w./*-]+", path) and path.partition("/")[0] in FOLDERS and "/" in path:
            assert [*ROOT.glob(path)], f"{page.name} names {span}"


def modules_of(page: Path) -> set[str]:
    """The modules that a page writes out: examples whose first line is a comment with their path."""
    paths = re.findall(r"^```python\n# ([\w/]+)\.py$", page.read_text(), flags=re.MULTILINE)
    return {path.replace("/", ".") for path in paths}


@each_page
def test_python_examples_compile_and_their_imports_exist(page):
    missing = []
    for example in python(page):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmx_fast"):
                if node.module in modules_of(page):
                    continue
                try:
                    module = importlib.import_module(node.module)
                except MissingExtraError as error:
                    missing.append(f"{node.module}: {error}")
                    continue
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
    if missing:
        pytest.skip("; ".join(missing))


def test_the_readme_s_examples_run():
    for example in blocks(ROOT / "README.md", "python"):
        names: dict[str, object] = {}
        exec(compile(example, "README.md", "exec"), names)
    # The last one shows a formula and what replaces it.
    assert names["after"].item() == pytest.approx(names["before"].item(), rel=1e-5)


def option_names(command: tuple[str, ...]) -> set[str]:
    """The options of a ``cmx`` command, as typed."""
    return {name for parameter in cli.open_command(command).params for name in parameter.opts} | {"--help"}


@each_page
def test_cmx_commands_and_their_options_exist(page):
    groups = {command[0] for command in cli.COMMANDS if len(command) == 2}
    for words in commands(page, "cmx") + commands(page, "torchrun --nproc-per-node 8 -m cmx_fast"):
        if words[0] == "COMMAND" or (len(words) == 1 and words[0] in groups):
            continue
        if words[0].startswith("--"):
            assert words[0] in {
                name for option in typer.main.get_command(cli.app).params for name in option.opts
            }
            continue
        command = tuple(words[:1]) if tuple(words[:1]) in cli.COMMANDS else tuple(words[:2])
        if words[0] == "bench" and command not in cli.COMMANDS:
            command = ("bench", "operators")
            for name in words[1:]:
                if name[0] not in "-[":
                    registry.select([name])  # refuses a name that no case has
        assert command in cli.COMMANDS, f"{page.name}: cmx {' '.join(words)}"
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - option_names(command)
        assert not unknown, f"{page.name}: cmx {' '.join(words)}"


@each_page
def test_make_targets_and_modules_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands(page, "make"):
        named = {word for word in words if "=" not in word}
        assert named <= targets, f"{page.name}: make {' '.join(words)}"
    for words in commands(page, "python -m"):
        path = ROOT / words[0].replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: {words}"


def test_the_site_s_pages_need_nothing_from_elsewhere(tmp_path):
    """Scripts, styles and pictures are the site's own, on a page with formulas, too."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs the docs extra")
    text = "Page\n====\n\nInline :math:`\\frac{1}{n}`.\n\n.. math::\n\n   \\sum_i \\exp(x_i)\n"
    (tmp_path / "page.rst").write_text(text)
    build = [
        "-q",
        "-W",
        "-c",
        str(ROOT / "docs"),
        "-D",
        "root_doc=page",
        str(tmp_path),
        str(tmp_path / "site"),
    ]
    subprocess.run([sys.executable, "-m", "sphinx", *build], check=True)
    page = (tmp_path / "site" / "page.html").read_text()
    assert page.count("<math") == 2 and "<mfrac>" in page
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', page)
