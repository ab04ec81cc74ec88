"""Recipes from words: every field of every recipe by its type, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import typing

import pytest

from cmx_fast.systems.c2l.recipe import C2LRecipe
from cmx_fast.systems.cmac.recipe import CMACRecipe, FinetuneRecipe
from cmx_fast.systems.csir.recipe import CSIRRecipe
from cmx_fast.systems.recognition.recipe import RecognitionRecipe
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.systems.sound2scene.localiser.recipe import LocaliserRecipe
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import NAMES, Checked, OneOf, Range, changes

RECIPES = [
    CSIRRecipe,
    C2LRecipe,
    CMACRecipe,
    FinetuneRecipe,
    ICGANRecipe,
    LocaliserRecipe,
    RecognitionRecipe,
    Sound2SceneRecipe,
]
WORDS = (
    "",
    "abc",
    "nan",
    "inf",
    "-1",
    "-0.5",
    "8.5",
    "1e400",
    "2",
    "none",
    "[]",
    "truth",
    "'",
    "0",
    "1e-9",
    "65,",
)
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def fields(recipe):
    """Name, type and ranges of every field."""
    for name, kind in typing.get_type_hints(recipe, include_extras=True).items():
        if typing.get_origin(kind) is not typing.ClassVar:  # presets
            yield (
                name,
                *((kind.__origin__, kind.__metadata__) if hasattr(kind, "__metadata__") else (kind, ())),
            )


@every_recipe
def test_every_number_has_a_range(recipe):
    assert {name for name, *_ in fields(recipe)} == {field.name for field in dataclasses.fields(recipe)}
    for name, base, ranges in fields(recipe):
        assert base in NAMES or typing.get_origin(base) is tuple
        # A mean is any number; the data say which decoders there are.
        if base in (int, float) and name != "audio_mean":
            assert len(ranges) == 1, name
        if base is str and name != "backend":
            assert isinstance(ranges[0], OneOf), name


@every_recipe
def test_defaults_come_back_from_text_and_from_json(recipe):
    default = recipe()
    for name, *_ in fields(recipe):
        value = getattr(default, name)
        read = changes([f"{name}={value}"], recipe)
        assert read == {name: value} and type(read[name]) is type(value)
    stored = recipe.stored(json.loads(json.dumps(default.as_dict())), "config.json")
    assert stored == default and list(map(type, stored.as_dict().values())) == list(
        map(type, default.as_dict().values())
    )


@every_recipe
def test_what_is_read_has_the_fields_type_or_is_refused_by_name(recipe):
    for (name, base, ranges), text in itertools.product(fields(recipe), WORDS):
        try:
            value = getattr(recipe(**changes([f"{name}={text}"], recipe)), name)
        except ValueError as error:
            said = str(error)
            assert name in said or "multiple of" in said or "at most" in said, said
            continue
        assert type(value) is (base if base in NAMES else tuple)
        assert all(value in allowed for allowed in ranges)
        assert text not in ("nan", "inf", "1e400") or base is str


@pytest.mark.parametrize("text", ["false", "False", "no", "off", "0"])
def test_false_is_false(text):
    assert changes([f"cosine={text}"], CMACRecipe) == {"cosine": False}


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "on", "1"])
def test_true_is_true(text):
    assert changes([f"cosine={text}"], CMACRecipe) == {"cosine": True}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["cosine=maybe"], "cosine must be true or false; got 'maybe'"),
        (["batch=abc"], "batch must be a whole number; got 'abc'"),
        (["frames=8.5"], "frames must be a whole number; got '8.5'"),
        (["lr=-1"], r"lr must be at least 0; got -1\.0"),
        (["lr=nan"], "lr must be a finite number; got nan"),
        (["batchs=4"], r"has no batchs \(did you mean batch\?\); it has attention, audio_mean"),
        (["=4"], "the recipe has no ; it has"),
    ],
)
def test_bad_words_are_refused(assignments, message):
    with pytest.raises(ValueError, match=message):
        CMACRecipe.preset("demo", **changes(assignments, CMACRecipe))


@pytest.mark.parametrize("text", ["6,10", "(6, 10)", "[6,10,]", " 6 , 10 "])
def test_lists(text):
    assert changes([f"milestones={text}"], FinetuneRecipe) == {"milestones": (6, 10)}


def test_no_field_holds_another_type():
    for name, value in (
        ("cosine", "false"),
        ("cosine", 1),
        ("batch", "4"),
        ("batch", 4.0),
        ("lr", "0.1"),
        ("lr", True),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            CMACRecipe.preset("demo", **{name: value})
    with pytest.raises(ValueError, match="head must be text; got 3"):
        CMACRecipe.preset("demo", head=3)
    assert type(CMACRecipe.preset("demo", lr=1).lr) is float


def test_a_stored_recipe_is_checked_and_what_it_lacks_is_said(tmp_path, capsys):
    file, values = tmp_path / "config.json", CMACRecipe.preset("demo").as_dict()
    assert CMACRecipe.stored(values, file) == CMACRecipe.preset("demo") and not capsys.readouterr().err
    with pytest.raises(ValueError, match=r"config.json: cosine must be true or false; got 'false'"):
        CMACRecipe.stored({**values, "cosine": "false"}, file)
    with pytest.raises(ValueError, match=r"config.json: the recipe has no cosin \(did you mean cosine\?\)"):
        CMACRecipe.stored({**values, "cosin": True}, file)
    with pytest.raises(ValueError, match=r"config.json: the recipe must be a table of fields; got \[\]"):
        CMACRecipe.stored([], file)
    del values["bank"]
    CMACRecipe.stored(values, file)
    assert "config.json does not say, so as by default: bank = 15000" in capsys.readouterr().err


def test_ranges_say_what_they_are():
    ranges = [
        Range(1),
        Range(above=0),
        Range(0, 1),
        Range(0, below=1),
        Range(above=0, most=1),
        OneOf(1, 2),
        OneOf("a", "", "c"),
    ]
    assert [str(allowed) for allowed in ranges] == [
        "at least 1", "above 0", "between 0 and 1", "in [0, 1)", "in (0, 1]", "1 or 2", "one of a, '', c"
    ]  # fmt: skip


def test_every_recipe_is_checked():
    recipes = {*Presets.__subclasses__(), *Checked.__subclasses__()} - {Presets}
    # Those that tests have made may still be in memory.
    known = {name for name in sys.modules if name.startswith("cmx_fast.")}
    assert {recipe for recipe in recipes if recipe.__module__ in known} == set(RECIPES)
