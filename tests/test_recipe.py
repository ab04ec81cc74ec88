"""``cmx recipe`` and the words of the recipes' fields."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import ClassVar

import pytest

from cmx_fast.recipe import RECIPES, print_recipe
from cmx_fast.train.presets import Presets
from cmx_fast.train.recipe_words import FieldWords, recipe_words


@dataclass(frozen=True)
class Small(Presets):
    """A recipe."""

    #: The changes of demo.
    DEMO: ClassVar[dict[str, object]] = {"size": 3}

    # Data
    size: int = 8  # [P] pixels; the code has 9 [R]
    #: Of the sound, in
    #: seconds [O].
    length: float = 1.5
    plain: str = "a # b"

    # Training
    # in steps
    steps: int = 7  # [R] of a stage


def test_words_are_those_of_the_source():
    assert recipe_words(Small) == {
        "size": FieldWords("Data", "pixels; the code has 9", ("paper", "code")),
        "length": FieldWords("Data", "Of the sound, in seconds.", ("ours",)),
        "plain": FieldWords("Data", "", ()),
        "steps": FieldWords("Training in steps", "of a stage", ("code",)),
    }


@pytest.mark.parametrize("system", RECIPES)
def test_every_field_of_every_recipe_says_whose_it_is(system):
    module, name = RECIPES[system].split(":")
    kind = getattr(importlib.import_module(module), name)
    words = recipe_words(kind)
    assert list(words) == [field.name for field in dataclasses.fields(kind)]
    assert [name for name, field in words.items() if not field.sources] == []


def test_the_table_has_values_and_changes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    print_recipe("cmac", "demo", ["epochs=7"])
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:6]] for line in capsys.readouterr().out.splitlines()
            if len(cells := line.split("│")) == 7}  # fmt: skip
    assert rows["epochs"][:3] == ["7", "200", "paper"]
    assert rows["frames"][:3] == ["8", "32", "paper"]
    assert rows["levels"][:3] == ["=", "2", "paper"]
    assert rows["consistency"][3] == "lambda of eq. 8"
    with pytest.raises(ValueError, match="system must be one of csir, cmac, .*; got 'clip'"):
        print_recipe("clip")
    with pytest.raises(ValueError, match="preset must be one of paper, demo"):
        print_recipe("csir", "large")
