"""Checked settings: a field's annotation gives its type and range, and text from outside is read by it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most`` that are above ``above`` and below ``below``."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.below):
            return f"in [{self.least:g}, {self.below:g})"
        if math.isfinite(self.above) and math.isfinite(self.most):
            return f"in ({self.above:g}, {self.most:g}]"
        if math.isfinite(self.most):
            return f"between {self.least:g} and {self.most:g}"
        return f"above {self.above:g}" if math.isfinite(self.above) else f"at least {self.least:g}"


class OneOf:
    """A few words or numbers."""

    def __init__(self, *choices: object):
        self.choices = choices

    def __contains__(self, value: object) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        names = [str(choice) or "''" for choice in self.choices]
        return " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"


Count = Annotated[int, Range(1)]
Size = Annotated[int, Range(0)]
Several = Annotated[int, Range(2)]
Positive = Annotated[float, Range(above=0)]
#: Learning rates, weights of losses: 0 switches them off.
Amount = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, below=1)]
ShareAboveZero = Annotated[float, Range(above=0, most=1)]
Hue = Annotated[float, Range(0, 0.5)]

#: Names of the types in messages.
NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Checked:
    """Base of a dataclass whose fields are bool, int, float, str or ``tuple[one of these, ...]``.

    A type in ``Annotated`` may have a :class:`Range` or :class:`OneOf`. No field holds a value of another type or
    outside its range: making such an instance raises ValueError with the field's name. Whole numbers become floats in
    float fields.
    """

    def __post_init__(self) -> None:
        for name, kind in _fields(type(self)).items():
            object.__setattr__(self, name, _checked(name, kind, getattr(self, name)))

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> dict[str, Any]:
        """Read values of fields from text: ``true``, ``8``, ``1e-3``, ``cosine``, ``6,10``.

        Raises:
            ValueError: no such field, or text that is no value of its type or outside its range.
        """
        cls.check_names(texts)
        fields = _fields(cls)
        values = {name: _read(name, fields[name], text) for name, text in texts.items()}
        return {name: _checked(name, fields[name], value) for name, value in values.items()}

    @classmethod
    def stored(cls, values: Any, file: Path) -> Self:
        """Make an instance of the values that ``file`` holds; print which fields it lacks: they have their defaults.

        Raises:
            ValueError: not a table of fields, or a value that a field can't have; names the file.
        """
        try:
            if not isinstance(values, dict):
                raise ValueError(f"the recipe must be a table of fields; got {values!r}")
            cls.check_names(values)
            instance = cls(**values)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        missing = [f"{name} = {getattr(instance, name)!r}" for name in _fields(cls) if name not in values]
        if missing:
            print(f"{file} does not say, so as by default: {', '.join(missing)}", file=sys.stderr)
        return instance

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Check names of fields.

        Raises:
            ValueError: a name that is no field; says the nearest one.
        """
        fields = _fields(cls)
        unknown = sorted(set(names) - fields.keys())
        if unknown:
            near = [difflib.get_close_matches(name, fields, 1) for name in unknown]
            meant = ", ".join(match[0] for match in near if match)
            raise ValueError(
                f"the recipe has no {', '.join(unknown)}{f' (did you mean {meant}?)' if meant else ''}; "
                f"it has {', '.join(sorted(fields))}"
            )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def changes(assignments: list[str], recipe: type[Checked], **options: object) -> dict[str, Any]:
    """["alpha=0.5", "contrast=cross"] as a dictionary, each value of the type of the recipe's field.

    If a name is given twice, its last value counts; those of ``options``, which stand for a field, count before all
    others, and not where they are None.

    Raises:
        ValueError: no assignment, a name that the recipe doesn't have, or a value of another type.
    """
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE; got {assignment!r}")
        texts[name] = value
    return recipe.read(texts) | {name: value for name, value in options.items() if value is not None}


def require(condition: bool, recipe: object, name: str, expected: str) -> None:
    """Raise ValueError unless ``condition`` holds: for a field whose range depends on other fields."""
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {getattr(recipe, name)!r}")


def _fields(cls: type) -> dict[str, Any]:
    """The annotation of every field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its ``Annotated``, and its ranges."""
    return (kind.__origin__, kind.__metadata__) if typing.get_origin(kind) is Annotated else (kind, ())


def _checked(name: str, kind: Any, value: Any) -> Any:
    """The value as the field holds it.

    Raises:
        ValueError: a value of another type, or outside of the range.
    """
    base, ranges = _parts(kind)
    if typing.get_origin(base) is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"{name} must be a list; got {value!r}")
        return tuple(_checked(name, typing.get_args(base)[0], item) for item in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if base is float and (whole or isinstance(value, float)):
        fits = math.isfinite(value)
        value = float(value) if fits else value
    else:
        fits = whole if base is int else isinstance(value, base)
    if not fits:
        raise ValueError(f"{name} must be {NAMES[base]}; got {value!r}")
    for allowed in ranges:
        if value not in allowed:
            raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return value


def _read(name: str, kind: Any, text: str) -> Any:
    """The value of a field's type that ``text`` spells; ValueError if it spells none."""
    base, _ = _parts(kind)
    if typing.get_origin(base) is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",")]
        return tuple(_read(name, typing.get_args(base)[0], item) for item in items if item)
    try:
        return BOOLEANS[text.strip().lower()] if base is bool else base(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be {NAMES[base]}; got {text!r}") from None
