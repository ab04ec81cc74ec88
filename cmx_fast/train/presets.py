"""Base of the recipes: two presets, the paper's and one for two CPU cores, and checked changes to them."""

from __future__ import annotations

from typing import ClassVar, Self

from cmx_fast.train.settings import Checked

PRESETS = ("paper", "demo")


class Presets(Checked):
    """Base of a recipe's dataclass: the defaults are the "paper" preset, ``DEMO`` is what "demo" changes of it."""

    DEMO: ClassVar[dict[str, object]] = {}

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """The recipe of that name with some numbers changed.

        Raises:
            ValueError: an unknown preset, a field that the recipe doesn't have, or a value that it can't have.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
        cls.check_names(changes)
        return cls(**{**(cls.DEMO if name == "demo" else {}), **changes})
