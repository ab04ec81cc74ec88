"""The words that a recipe's source has for each of its fields: what it means, and whose number it is."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass, fields

from cmx_fast.train.presets import Presets

#: The marks of where a default comes from.
SOURCES = {"P": "paper", "R": "code", "O": "ours"}


@dataclass(frozen=True)
class FieldWords:
    """The words of one field.

    Attributes:
        section: the comment above its group of fields.
        meaning: its own comment, without the marks; empty where it has none.
        sources: "paper", "code", "ours" or several of them: of the numbers that the comment marks.
    """

    section: str
    meaning: str
    sources: tuple[str, ...]


def recipe_words(recipe: type[Presets]) -> dict[str, FieldWords]:
    """Read the comments of a recipe's fields, in their order.

    A field's comment is on its line, or on the lines above it that begin with ``#:``. A line that begins with ``#`` and
    follows an empty one begins a section.
    """
    lines = textwrap.dedent(inspect.getsource(recipe)).splitlines()
    source = "\n".join(lines)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    trailing = {
        token.start[0]: token.string[1:].strip() for token in tokens if token.type == tokenize.COMMENT
    }
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    names = {field.name for field in fields(recipe)}  # type: ignore[arg-type]  # recipes are dataclasses
    words: dict[str, FieldWords] = {}
    section, last = "", 0
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = [line.strip() for line in lines[last : node.lineno - 1]]
        last = node.end_lineno or node.lineno
        if node.target.id not in names:
            continue
        headings = [line for line in above if re.match(r"# ", line)]
        section = " ".join(line[2:] for line in headings) or section
        comments = [line[3:] for line in above if line.startswith("#: ")]
        comments += [trailing[line] for line in range(node.lineno, last + 1) if line in trailing]
        text = " ".join(comments)
        sources = tuple(dict.fromkeys(SOURCES[mark] for mark in re.findall(r"\[([PRO])\]", text)))
        words[node.target.id] = FieldWords(_unmarked(section), _unmarked(text), sources)
    return words


def _unmarked(text: str) -> str:
    return re.sub(r" ?\[[PRO]\]", "", text).strip(" ;")
