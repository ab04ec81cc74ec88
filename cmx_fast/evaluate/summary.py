"""Figures over seeds: mean and spread, in numbers, in words and in tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

from rich.table import Table

#: A mean and a sample standard deviation.
Spread = tuple[float, float]


def mean_and_spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation (0 of one value) of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return mean(known), stdev(known) if len(known) > 1 else 0.0


def percent(value: Spread | None, with_spread: bool, between: str = "±") -> str:
    """ "70.0±20.0", or without the spread "70.0"; a dash for what is not known."""
    if value is None or math.isnan(value[0]):
        return "–"
    return f"{100 * value[0]:.1f}" + (f"{between}{100 * value[1]:.1f}" if with_spread else "")


def seeds_note(count: int) -> str:
    """The end of a table's title: says that cells are means, if there are several seeds."""
    return f"; mean±std of {count} seeds" if count > 1 else ""


def new_table(title: str, columns: Iterable[str], first: str = "", caption: str | None = None) -> Table:
    """A table without rows, whose columns after the ``first`` hold numbers."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


class SeedScores:
    """Scores of several models, each trained from several seeds; every score is a share of 1.

    Attributes:
        by_model: the scores of each seed by name, for each model.
    """

    def __init__(self, models: Iterable[str]):
        self.by_model: dict[str, list[dict[str, float]]] = {model: [] for model in models}

    def add(self, model: str, scores: dict[str, float]) -> None:
        """Add the next seed's scores of a model."""
        self.by_model[model].append(scores)

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(next(iter(self.by_model.values())))

    @property
    def measures(self) -> list[str]:
        """The names of the scores."""
        return list(next(iter(self.by_model.values()))[0])

    def spread(self, model: str, measure: str) -> Spread:
        """Mean and sample standard deviation over the seeds (0 for one seed)."""
        value = mean_and_spread(scores[measure] for scores in self.by_model[model])
        assert value is not None
        return value

    def percent(self, model: str, measure: str, between: str = "±") -> str:
        """The mean in percent, with the spread if there are several seeds."""
        return percent(self.spread(model, measure), self.seeds > 1, between)

    def for_page(self, model: str, measure: str) -> str:
        """As :meth:`percent`, spaced for a page."""
        return self.percent(model, measure, " ± ")

    def as_dict(self, measures: Sequence[str]) -> dict[str, object]:
        """The entries of results.json: mean and spread of these measures, and the scores of every seed."""
        return {
            "mean_and_spread": {
                model: {measure: self.spread(model, measure) for measure in measures}
                for model in self.by_model
            },
            "seeds": self.by_model,
        }

    def table(self, title: str, measures: Mapping[str, str], names: Mapping[str, str]) -> Table:
        """A row per model in percent; ``measures`` and ``names`` are the titles of columns and rows."""
        table = new_table(title + seeds_note(self.seeds), measures.values())
        for model in self.by_model:
            table.add_row(names[model], *(self.percent(model, measure) for measure in measures))
        return table
