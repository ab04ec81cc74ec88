"""``cmx recipe``: every number of a system's preset, with its meaning and where it comes from."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmx_fast.options import Set, words
from cmx_fast.train.presets import Presets
from cmx_fast.train.recipe_words import recipe_words
from cmx_fast.train.settings import changes

#: The recipe of each command that trains a system.
RECIPES = {
    "csir": "cmx_fast.systems.csir.recipe:CSIRRecipe",
    "cmac": "cmx_fast.systems.cmac.recipe:CMACRecipe",
    "c2l": "cmx_fast.systems.c2l.recipe:C2LRecipe",
    "sound2scene": "cmx_fast.systems.sound2scene.recipe:Sound2SceneRecipe",
    "icgan": "cmx_fast.systems.sound2scene.icgan.recipe:ICGANRecipe",
    "localiser": "cmx_fast.systems.sound2scene.localiser.recipe:LocaliserRecipe",
    "recognition": "cmx_fast.systems.recognition.recipe:RecognitionRecipe",
}


def print_recipe(
    system: Annotated[
        str,
        typer.Argument(
            help=f"System: {', '.join(RECIPES)}.", show_default=False, autocompletion=words(*RECIPES)
        ),
    ],
    preset: Annotated[str, typer.Option(help="Preset: paper, demo, or another of the system's.")] = "paper",
    set: Set = [],  # noqa: B006
) -> None:
    """Print every number of a system's recipe: value, meaning, and whose it is.

    Of the paper preset's numbers, "paper" is one that the paper states, "code" one of the public code that it follows,
    and "ours" one that neither says. Where the preset or --set has another, both are shown.
    """
    if system not in RECIPES:
        raise ValueError(f"system must be one of {', '.join(RECIPES)}; got {system!r}")
    module, name = RECIPES[system].split(":")
    kind: type[Presets] = getattr(importlib.import_module(module), name)
    recipe = kind.preset(preset, **changes(set, kind))
    Console().print(recipe_table(recipe, f"{system}, preset {preset}"))


def recipe_table(recipe: Presets, title: str) -> Table:
    """The table of a recipe's fields, a section of its source after the other."""
    table = Table(title=title, title_justify="left")
    for heading in ("--set", "value", "paper preset", "whose", "meaning"):
        table.add_column(heading, overflow="fold")
    defaults, section = type(recipe)(), None
    if recipe == defaults:
        table.columns.pop(1)
    for name, field in recipe_words(type(recipe)).items():
        if field.section != section:
            if section is not None:
                table.add_section()
            section = field.section
            table.add_row(*[""] * (len(table.columns) - 1), f"[bold]{escape(section)}[/bold]")
        value, default = getattr(recipe, name), getattr(defaults, name)
        changed = f"[bold]{_shown(value)}[/bold]" if value != default else "="
        shown = [changed] * (recipe != defaults) + [_shown(default)]
        table.add_row(name, *shown, ", ".join(field.sources), escape(field.meaning))
    return table


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"
