"""The rows of Table 2: other losses, no frame selection, and less sound, each with several seeds."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cmx_fast.evaluate.summary import mean_and_spread, new_table, percent, seeds_note
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe

if TYPE_CHECKING:
    from cmx_fast.systems.sound2scene.evaluation import Evaluation


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        folder: its runs are in ``<folder>/seed<n>`` of the ablation's folder.
        title: the loss and what is changed.
        fields: the recipe's fields that differ.
        selection: False: the middle frames, whatever the selection says.
    """

    folder: str
    title: str
    fields: dict[str, Any] = field(default_factory=dict)
    selection: bool = True

    @property
    def features(self) -> str:
        """The folder of the pictures' features, which rows with the same frames share."""
        return "features" if self.selection else "features_of_middle_frames"

    def changes(self, recipe: Sound2SceneRecipe) -> dict[str, Any]:
        """The fields of a plan that the row replaces."""
        changed: dict[str, Any] = {"recipe": dataclasses.replace(recipe, **self.fields)}
        return changed if self.selection else {**changed, "selection": None}


#: By the name that ``--ablation`` takes; the letters are those of the text, which the printed table shifts by a row.
ABLATIONS = {
    row.folder: row
    for row in (
        Row("regression", "A  L_2", {"loss": "regression"}),
        Row("cosine", "B  L_nce", {"loss": "cosine"}),
        Row("middle", "C  L_total, no frame selection", {"loss": "l2"}, selection=False),
        Row("1s", "D  L_total, 1 s", {"loss": "l2", "heard": 1.0}),
        Row("5s", "E  L_total, 5 s", {"loss": "l2", "heard": 5.0}),
        Row("full", "F  L_total", {"loss": "l2"}),
    )
}


def chosen_rows(names: Sequence[str], recipe: Sound2SceneRecipe, selection: Path | None) -> list[Row]:
    """The rows that ``--ablation`` names, in the table's order.

    Raises:
        ValueError: an unknown row, "middle" by name without a selection, or a row that hears longer than the recipe.
    """
    unknown = [name for name in names if name not in (*ABLATIONS, "all")]
    if unknown:
        raise ValueError(
            f"ablation must be one or more of {', '.join(ABLATIONS)}, all; got {', '.join(unknown)}"
        )
    chosen = [name for name in ABLATIONS if name in names or "all" in names]
    if selection is None and "middle" in chosen:
        if "middle" in names:
            raise ValueError(
                "--ablation middle is the row without frame selection; it needs --selection to differ"
            )
        print("row C is left out: without --selection it is row F", file=sys.stderr)
        chosen.remove("middle")
    for row in (ABLATIONS[name] for name in chosen):
        dataclasses.replace(recipe, **row.fields)
    return [ABLATIONS[name] for name in chosen]


class AblationScores:
    """The figures of the rows over the seeds: of row B of Table 1, pictures that are generated from sounds."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, float]]] = {}

    @property
    def measured(self) -> bool:
        """False in the processes that do not evaluate."""
        return bool(self._rows)

    def add(self, row: Row, evaluation: Evaluation | None) -> None:
        """Add the evaluation of a row's next seed; None where another process has it."""
        if evaluation is not None:
            retrieval = {f"own {k}": evaluation.retrieval[f"sound_to_picture {k}"] for k in ("R@1", "R@10")}
            self._rows.setdefault(row.folder, []).append(evaluation.table["B"] | retrieval)

    def write(self, out: Path) -> None:
        """Print the table; write ablation.json: by row the figures of every seed, and their mean and spread."""
        results = {
            name: {
                "title": ABLATIONS[name].title,
                "seeds": seeds,
                "mean_and_spread": {
                    measure: mean_and_spread(figures[measure] for figures in seeds) for measure in seeds[0]
                },
            }
            for name, seeds in self._rows.items()
        }
        (out / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
        Console().print(self.table())

    def table(self) -> Table:
        """Table 2 for a terminal: shares in percent, mean and spread over the seeds."""
        first = next(iter(self._rows.values()))
        names = list(first[0])
        result = new_table(
            "pictures of sounds" + seeds_note(len(first)),
            [name.replace(" ", "\n") for name in names],
            first="Table 2",
            caption="own: a sound's own picture, by its features",
        )
        for name, seeds in self._rows.items():
            cells = []
            for measure in names:
                value = mean_and_spread(figures[measure] for figures in seeds)
                assert value is not None
                if measure in ("FID", "IS"):
                    cells.append(f"{value[0]:.2f}" + (f"±{value[1]:.2f}" if len(seeds) > 1 else ""))
                else:
                    cells.append(percent(value, len(seeds) > 1))
            result.add_row(ABLATIONS[name].title, *cells)
        return result
