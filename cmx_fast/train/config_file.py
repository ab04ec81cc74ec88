"""``--config``: the options of a training command from a YAML file, or those of an earlier run from its config.json."""

from __future__ import annotations

import copy
import difflib
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cmx_fast._extras import require
from cmx_fast.options import Sets, words
from cmx_fast.train.presets import Presets
from cmx_fast.train.settings import Checked

Command = Callable[..., None]
#: Entries of config.json that an option of another name gives.
OF_RUN = {"models": ("model", "attention")}


def recipe_of(command: Command) -> type[Checked] | None:
    """The recipe that a command's ``--set`` changes, as its annotation says; None: it has none."""
    kind = typing.get_type_hints(command, include_extras=True).get("set")
    return next((known for known in typing.get_args(kind) if isinstance(known, type)), None)


def with_config(command: Command, name: str) -> Command:
    """A command that trains, ``name`` after ``cmx``, with ``--config FILE`` among its options.

    Its presets and the fields of its recipe are completed.
    """
    recipe = recipe_of(command)
    assert recipe is not None
    assignments: list[str] = []  # those of the file

    def read(context: typer.Context, config: Path | None) -> Path | None:
        if config is not None and not context.resilient_parsing:
            context.default_map, assignments[:] = read_config(config, command, name)
            options = {option.name: option for option in context.command.params}
            for key, value in context.default_map.items():
                try:
                    options[key].process_value(context, value)
                except typer.BadParameter as error:
                    raise ValueError(f"{config}: {_key(key)}: {error.message}") from error
        return config

    def configured(config: Path | None = None, **options: Any) -> None:
        command(**{**options, "set": [*assignments, *options["set"]]})

    described = typer.Option(
        is_eager=True,
        callback=read,
        help="YAML file of these options, with the recipe's fields under set; or a run's config.json. The command "
        "line wins.",
    )
    option = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, described]
    )
    signature = inspect.signature(command, eval_str=True)
    choices = {"set": [f"{field}=" for field in recipe().as_dict()]}
    if issubclass(recipe, Presets):
        choices["preset"] = list(recipe.presets())
    parameters = [
        _completing(one, choices[one.name]) if one.name in choices else one
        for one in signature.parameters.values()
    ]
    parameters.append(option)
    configured.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    configured.__annotations__ = {one.name: one.annotation for one in parameters}
    configured.__doc__ = command.__doc__
    return configured


def _completing(parameter: inspect.Parameter, choices: list[str]) -> inspect.Parameter:
    """The parameter with an option of its own that is completed by these words."""
    kind, *described = typing.get_args(parameter.annotation)
    for one in described:
        if isinstance(one, typer.models.OptionInfo):
            one = copy.copy(one)  # other commands have it, too
            one.autocompletion = words(*choices)
        kind = Annotated[kind, one]
    return parameter.replace(annotation=kind)


def read_config(file: Path, command: Command, name: str) -> tuple[dict[str, Any], list[str]]:
    """Read the options of a command from a file: values by parameter, as words of a command line, and ``--set``'s.

    Raises:
        ValueError: no such file, one that is not YAML or of another shape, a name that is no option, or a value of
            another type; names file and key.
    """
    entries = _entries(file)
    recipe = recipe_of(command)
    assert recipe is not None
    kinds = typing.get_type_hints(command, include_extras=True)
    kinds.pop("return", None)
    if "command" in entries and "recipe" in entries:
        entries = _of_run(file, entries, recipe, kinds, name)
    options: dict[str, Any] = {}
    fields = _assignments(file, entries.pop("set", None), recipe)
    for key, value in entries.items():
        parameter = str(key).replace("-", "_")
        if parameter not in kinds:
            raise ValueError(f"{file}: {key} is no option of cmx {name}{_hint(parameter, kinds, recipe)}")
        if value is None:
            continue
        words = _words(file, str(key), value, kinds[parameter])
        field = next(
            (known.field for known in typing.get_args(kinds[parameter]) if isinstance(known, Sets)), None
        )
        if field is None:
            options[parameter] = words
        else:
            fields[field] = words
    try:
        recipe.read(fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return options, [f"{field}={text}" for field, text in fields.items()]


def _hint(name: str, kinds: dict[str, Any], recipe: type[Checked]) -> str:
    """What a name that is no option may have meant."""
    if name in recipe().as_dict():
        return f"; it is a field of the recipe: set: {{{name}: ...}}"
    near = difflib.get_close_matches(_key(name), map(_key, kinds), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _entries(file: Path) -> dict[str, Any]:
    yaml = require("yaml", "train")
    if not file.is_file():
        raise ValueError(f"--config {file}: there is no such file")
    try:
        entries = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise ValueError(f"{file} must hold names and values of options; it holds {type(entries).__name__}")
    return entries


def _of_run(
    file: Path, config: dict[str, Any], recipe: type[Checked], kinds: dict[str, Any], name: str
) -> dict[str, Any]:
    """The options that gave a run its config.json; of the recipe what its preset does not have."""
    if config["command"] != name:
        raise ValueError(f"{file} is of a run of cmx {config['command']}, not of cmx {name}")
    entries = {key: value for key, value in config.items() if key in kinds}
    for key, names in OF_RUN.items():
        entries.update({option: config[key] for option in names if option in kinds and key in config})
    if "seeds" in config:
        entries |= {"seed": config["seeds"][0], "seeds": len(config["seeds"])}
    preset = config.get("preset")
    usual = recipe.preset(preset) if preset is not None and issubclass(recipe, Presets) else recipe()
    known = {
        key: list(value) if isinstance(value, tuple) else value for key, value in usual.as_dict().items()
    }
    entries["set"] = {key: value for key, value in config["recipe"].items() if known.get(key) != value}
    return entries


def _assignments(file: Path, given: Any, recipe: type[Checked]) -> dict[str, str]:
    """The fields under ``set``, as text."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"{file}: set must be a mapping of the recipe's fields; got {given!r}")
    return {str(field): _text(value) for field, value in given.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(file: Path, key: str, value: Any, kind: Any) -> Any:
    """The value as a command line gives it: text, several, or True and False of an option without a value."""
    base = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    types = [one for one in typing.get_args(base) or (base,) if one is not type(None)]
    (wanted,) = types
    if typing.get_origin(base) is list:
        several = value if isinstance(value, list) else [value]
        return [_words(file, key, one, wanted) for one in several]
    if wanted is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{file}: {key} must be true or false; got {value!r}")
        return value
    texts = wanted in (str, Path)
    if not isinstance(value, str if texts else int | float | str) or isinstance(value, bool):
        expected = "text" if texts else "a number"
        raise ValueError(f"{file}: {key} must be {expected}; got {value!r}")
    return str(value)


def _key(parameter: str) -> str:
    return parameter.replace("_", "-")
