"""Fills in the templates of reports, named by their paths in the package; all extend ``evaluate/base.html.j2``."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cmx_fast.data.sets.lists import printable
from cmx_fast.evaluate import colours


def render(template: str, **values: Any) -> str:
    """Fill in the template; a value that is missing is an error. File names in it may be any bytes."""
    environment = Environment(
        loader=PackageLoader("cmx_fast", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return printable(environment.get_template(template).render(**values, colours=colours))
