"""A run on disk: resolved config, metrics, finished weights, and the checkpoint of the stage under way.

config.json          everything that decides the numbers
metrics.jsonl, .csv  one row per interval
<stage>.pt           weights of a finished stage, e.g. seed0/csir.pt
checkpoint.pt        the stage under way: weights, optimiser, random number generators, step
results.json, report.html
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from cmx_fast.models.weights import load, save


class RunFolder:
    """Opens ``path`` for a run with this config.

    Without ``resume`` the folder must not hold a run yet. With it, an earlier run's config must say the same
    (and an empty folder simply starts one).

    Raises:
        ValueError: the folder holds a run and ``resume`` is off, or the run in it has another config.
    """

    def __init__(
        self, path: Path | str, config: dict[str, Any], *, resume: bool = False, writer: bool = True
    ):
        self.path, self.writer = Path(path), writer
        self.config = config = json.loads(json.dumps(config))  # as it will be read back
        existing = self.path / "config.json"
        if not writer:
            return  # the writing process checks, and may be writing this very file
        if existing.exists():
            if not resume:
                raise ValueError(
                    f"{self.path} already holds a run; continue it with --resume, or choose another --out"
                )
            before = json.loads(existing.read_text())
            changed = sorted(k for k in before.keys() | config.keys() if before.get(k) != config.get(k))
            if changed:
                raise ValueError(
                    f"{self.path} was trained with other settings: "
                    + "; ".join(f"{k} was {before.get(k)!r}, now {config.get(k)!r}" for k in changed)
                )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(existing, json.dumps(config, indent=2) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self, row: dict[str, Any]) -> None:
        if self.writer:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Drop the rows that an interrupted run wrote for this stage after the step it is resumed from."""
        if self.writer:
            kept = [row for row in self.rows() if row["stage"] != stage or row["step"] <= step]
            write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def write_csv(self) -> None:
        """metrics.csv from metrics.jsonl; a metric that a stage doesn't have is an empty cell."""
        rows = self.rows()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (self.path / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def weights(self, stage: str) -> dict[str, Any] | None:
        """The finished stage's state dict, or None while it isn't finished."""
        file = self.path / f"{stage}.pt"
        return load(file)["module"] if file.exists() else None

    def finish(self, stage: str, module: dict[str, Any]) -> None:
        if self.writer:
            save(self.path / f"{stage}.pt", {"stage": stage, "module": module})
            (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        if self.writer:
            save(self.path / "checkpoint.pt", state)

    def checkpoint(self, stage: str) -> dict[str, Any] | None:
        """The state of an interrupted stage, or None where there is none of this stage."""
        file = self.path / "checkpoint.pt"
        state = load(file) if file.exists() else None
        return state if state is not None and state["stage"] == stage else None


def write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    os.replace(partial, file)
