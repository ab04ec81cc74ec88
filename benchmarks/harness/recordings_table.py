"""The table of the systems on real recordings, from the committed file of what their pages report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A figure in per cent, or its mean and its standard deviation.
Figure = float | list[float]
HEAD = "| recordings, measure in % | the method | its baselines | chance | runs | processor | commands |"


def written(figure: Figure) -> str:
    """A figure as tables have it: with one digit behind the point, and its deviation if it has one."""
    if isinstance(figure, list):
        mean, deviation = figure
        return f"{mean:.1f} ± {deviation:.1f}"
    return f"{figure:.1f}"


def named(figures: Mapping[str, Figure]) -> str:
    """Figures with their names, in one cell."""
    return ", ".join(f"{name} {written(figure)}" for name, figure in figures.items())


def lines(document: Mapping[str, Any]) -> list[str]:
    """The section: one row for each measure of each system's recordings, and the document's remarks."""
    rows = [
        f"| {row['system']}: {row['recordings']}; {row['measure']} | {named(row['method'])} "
        f"| {named(row['baselines'])} | {named(row['chance'])} | {row['runs']} | {row['processor']} "
        f"| [{row['system']}]({row['page']}) |"
        for row in document["rows"]
    ]
    return [
        "## On real recordings",
        "",
        *document["introduction"],
        "",
        HEAD,
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *(f"- {remark}" for remark in document["remarks"]),
        "",
    ]
