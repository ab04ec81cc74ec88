"""What the recipes share: two presets, the paper's and one for two CPU cores, and checked changes to them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

PRESETS = ("paper", "demo")


class Presets:
    """Base of a recipe's dataclass, whose defaults are the "paper" preset and whose ``DEMO`` names what differs."""

    DEMO: ClassVar[dict[str, object]] = {}

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """The recipe of that name with some numbers changed.

        Raises:
            ValueError: an unknown preset, or a field that the recipe doesn't have.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"the recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**{**(cls.DEMO if name == "demo" else {}), **changes})

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def require(condition: bool, recipe: object, name: str, expected: str) -> None:
    """Raise ValueError naming the field, what it must be and what it is."""
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {getattr(recipe, name)!r}")
