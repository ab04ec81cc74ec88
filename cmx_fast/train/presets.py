"""Base of the recipes: presets, the paper's and some for two CPU cores, and checked changes to them."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import Self

from cmx_fast.train.settings import Checked


class Presets(Checked):
    """Base of a recipe's dataclass.

    The defaults are the "paper" preset, ``DEMO`` is what "demo" changes of it, ``MORE`` has further presets by name.
    """

    DEMO: ClassVar[dict[str, object]] = {}
    MORE: ClassVar[dict[str, dict[str, object]]] = {}

    @classmethod
    def presets(cls) -> dict[str, dict[str, object]]:
        """What each preset changes of the defaults."""
        return {"paper": {}, "demo": cls.DEMO, **cls.MORE}

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """The recipe of that name with some numbers changed.

        Raises:
            ValueError: an unknown preset, a field that the recipe doesn't have, or a value that it can't have.
        """
        presets = cls.presets()
        if name not in presets:
            raise ValueError(f"preset must be one of {', '.join(presets)}; got {name!r}")
        cls.check_names(changes)
        return cls(**{**presets[name], **changes})
