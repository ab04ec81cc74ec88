"""``--config``: the options of a training command from a YAML file, or those of a run from its config.json."""

from __future__ import annotations

import difflib
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cmx_fast.options import Sets
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import NAMES, Checked

Config = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        help="YAML file of this command's options, with a mapping set of the recipe's fields; or a run's config.json. "
        "The command line wins.",
    ),
]


def recipe_of(command: Callable[..., None]) -> type[Checked] | None:
    """The recipe that a command's ``--set`` changes, which its annotation names; None: the command has none."""
    named = typing.get_type_hints(command, include_extras=True).get("set")
    return next((kind for kind in getattr(named, "__metadata__", ()) if isinstance(kind, type)), None)


def with_config(command: Callable[..., None], name: str) -> Callable[..., None]:
    """A command that trains, called ``name`` after ``cmx``, with the option ``--config``."""
    assignments: list[str] = []  # of the file

    def read(context: typer.Context, config: Path | None) -> Path | None:
        if config is not None and not context.resilient_parsing:
            options, assignments[:] = ConfigFile(config, command, name).read()
            for option in context.command.params:
                if option.name in options:
                    _check_range(context, option, options[option.name], config)
            context.default_map = options
        return config

    def configured(config: Path | None = None, **options: Any) -> None:
        command(**{**options, "set": [*assignments, *options["set"]]})

    option = typing.get_args(Config)
    option[1].callback = read
    signature = inspect.signature(command, eval_str=True)
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
    configured.__signature__ = signature.replace(parameters=[*signature.parameters.values(), config])  # type: ignore[attr-defined]
    configured.__doc__ = command.__doc__
    configured.__annotations__ = {**typing.get_type_hints(command, include_extras=True), "config": Config}
    return configured
