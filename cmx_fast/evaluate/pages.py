"""Reports from the templates that lie beside this file; all extend ``base.html.j2``."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The template filled in; a value that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("cmx_fast", "evaluate"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(**values)
