"""The folder of a run: resolved config, metrics, finished weights, and checkpoints of the stage under way.

config.json             everything that decides the numbers
metrics.jsonl, .csv     one row per interval
<stage>.pt              weights of a finished stage, e.g. seed0/csir.pt
checkpoints/<stage>/    the stage under way, the last two: weights, optimiser, random number generators, step
bad-batch-<step>.pt     the batch whose loss was not finite
results.json, report.html
"""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cmx_fast
from cmx_fast.networks.weights import load, read_json, save, write_text
from cmx_fast.train.settings import Checked

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

#: Checkpoints of a stage that are kept: should the newest turn out damaged, there is one before it.
KEPT = 2

Rows = list[dict[str, Any]]
Recipe = TypeVar("Recipe", bound=Checked)


@dataclass(frozen=True)
class FinishedRun:
    """A run whose models are all trained, to be read; :meth:`RunFolder.open_finished` opens one.

    Attributes:
        path: the run folder.
        config: what config.json holds.
    """

    path: Path
    config: dict[str, Any]

    def recipe(self, kind: type[Recipe]) -> Recipe:
        """The run's recipe.

        Raises:
            ValueError: it doesn't fit ``kind``; names the file.
        """
        return kind.stored(self.config["recipe"], self.path / "config.json")

    def rows(self) -> Rows:
        """The run's metrics, a row per interval and stage."""
        return _read_rows(self.path)

    def models(self) -> Iterator[tuple[str, int]]:
        """Each model's name with each seed, all seeds of a model together."""
        return ((name, seed) for name in self.config["models"] for seed in self.config["seeds"])

    def choose(
        self, usable: Sequence[str], model: str | None = None, seed: int | None = None
    ) -> tuple[str, int]:
        """The name and seed of the model to open.

        Args:
            usable: the models that can be opened, the preferred one first.
            model: default the first of them that the run has.
            seed: default the run's first.

        Raises:
            ValueError: the run has no such model, or not of this seed; names those that it has.
        """
        seeds = self.config["seeds"]
        trained = [name for name in self.config["models"] if name in usable]
        name = model or min(trained, key=list(usable).index, default=usable[0])
        seed = seeds[0] if seed is None else seed
        if name not in trained or seed not in seeds:
            raise ValueError(
                f"{self.path} has no model {name!r} of seed {seed} to open; it has {', '.join(trained) or 'none'} of "
                f"the seeds {', '.join(map(str, seeds))}"
            )
        return name, seed

    def weights(self, stage: str) -> dict[str, Any]:
        """The state dict of a finished stage, e.g. of "seed0/csir".

        Raises:
            ValueError: the stage is not finished, or its file is damaged.
        """
        file = self.path / f"{stage}.pt"
        if not file.is_file():
            raise self._unfinished([f"{stage}.pt"])
        return load(file)["module"]

    def check(self) -> None:
        """
        Raises:
            ValueError: the weights of a model and seed are missing; names them.
        """
        stages = [
            f"seed{s}/{m}.pt" for s in self.config.get("seeds", ()) for m in self.config.get("models", ())
        ]
        missing = [name for name in stages if not (self.path / name).is_file()]
        if missing:
            raise self._unfinished(missing)

    def write_results(self, results: object, file: str = "results.json") -> None:
        """Write what was measured into the folder."""
        (self.path / file).write_text(json.dumps(results, indent=2) + "\n")

    def _unfinished(self, missing: list[str]) -> ValueError:
        return ValueError(
            f"{self.path} is not finished: no {', '.join(missing)}; "
            f"continue it with cmx {self.config['command']} --resume"
        )


class RunFolder:
    """Opens ``path`` for a run with this config, and keeps others out until the process ends or :meth:`close`.

    Without ``resume`` the folder must not hold a run yet. With it, an earlier run's config must be the same, but for
    the number of processes; an empty folder starts a run. A change of that number is printed, since batches and random
    numbers then differ from here on.

    Raises:
        ValueError: the folder holds a run and ``resume`` is off, the run in it has another config, its config is
            damaged, or another process uses it.
    """

    def __init__(
        self, path: Path | str, config: dict[str, Any], *, resume: bool = False, writer: bool = True
    ):
        self.path, self.writer = Path(path), writer
        self.config = config = json.loads(json.dumps(config))  # as it will be read back
        self._lock: Any = None
        self.loggers: list[Logger] = []
        existing = self.path / "config.json"
        if not writer:
            self._rows: Rows = []
            return  # the writing process checks, and may be writing this very file
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._rows = _read_rows(self.path)
        if not existing.exists():
            write_text(existing, json.dumps(config, indent=2) + "\n")
            return
        if not resume:
            self.close()
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume, or choose another --out"
            )
        before, config = _flat(read_json(existing)), _flat(config)
        changed = sorted(k for k in before.keys() | config.keys() if before.get(k) != config.get(k))
        if changed == ["processes"]:
            self._say(
                f"this run was started by {before['processes']} processes and goes on with {config['processes']}: "
                "a step's batch has grown or shrunk with them, and random numbers differ from here on"
            )
            write_text(existing, json.dumps(self.config, indent=2) + "\n")
        elif changed:
            self.close()
            raise ValueError(
                f"{self.path} was trained with other settings: "
                + "; ".join(f"{k} was {before.get(k)!r}, now {config.get(k)!r}" for k in changed)
            )

    @staticmethod
    def open_finished(path: Path | str, command: str) -> FinishedRun:
        """The finished run of ``cmx <command>`` in this folder, for reading: nobody is kept out.

        Raises:
            ValueError: the folder holds no run, one of another command, a config that can't be read, or a run whose
                models are not all trained.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} is not a run folder: it has no config.json; cmx {command} --out makes one"
            )
        run = FinishedRun(path, read_json(path / "config.json"))
        if run.config.get("command") != command:
            raise ValueError(f"{path} is a run of cmx {run.config.get('command')}, not of cmx {command}")
        run.check()
        return run

    def finished(self) -> FinishedRun:
        """This run, once all its models are trained, as :meth:`open_finished` gives it."""
        return self.open_finished(self.path, self.config["command"])

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def rows(self) -> Rows:
        """The metrics so far."""
        return list(self._rows)

    def log(self, row: dict[str, Any]) -> None:
        """Add a row to the metrics, and log its numbers, named by the stage, to the run's loggers."""
        self._rows.append(row)
        numbers = {f"{row['stage']}/{name}": row[name] for name in row if name not in ("stage", "step")}
        for logger in self.loggers:
            logger.log_metrics(numbers, row["step"])
        if self.writer:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Drop the rows of this stage that an interrupted run wrote after the step from which it is resumed."""
        self._rows = [row for row in self._rows if row["stage"] != stage or row["step"] <= step]
        self._write_rows()

    def write_csv(self) -> None:
        """Write metrics.csv; a metric that a stage doesn't have is an empty cell."""
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with (self.path / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)

    def weights(self, stage: str) -> dict[str, Any] | None:
        """The finished stage's state dict, or None if it isn't finished or its file is damaged."""
        file = self.path / f"{stage}.pt"
        if not file.exists():
            return None
        try:
            state = load(file)
        except ValueError as error:
            self._say(f"{error}; this stage is trained again")
            return None
        self._restore_rows(state["rows"])
        return state["module"]

    def finish(self, stage: str, module: dict[str, Any]) -> None:
        """Save a stage's weights and drop its checkpoints."""
        if self.writer:
            self._write_rows()
            save(self.path / f"{stage}.pt", {"stage": stage, "module": module, "rows": self._rows})
            for file in self._checkpoints(stage):
                file.unlink()

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save the state of ``state["stage"]`` at ``state["step"]``, with config and rows; keep the last two."""
        if self.writer:
            extra = {"rows": self._rows, "config": self.config, "version": cmx_fast.__version__}
            save(self._folder(state["stage"]) / f"{state['step']:010d}.pt", {**state, **extra})
            for file in self._checkpoints(state["stage"])[:-KEPT]:
                file.unlink()

    def checkpoint(self, stage: str) -> dict[str, Any] | None:
        """The newest readable state of an interrupted stage, or None."""
        for file in reversed(self._checkpoints(stage)):
            try:
                state = load(file)
            except ValueError as error:
                self._say(f"{error}; going back to the checkpoint before it, or to the stage's beginning")
                continue
            self._restore_rows(state["rows"])
            return state
        return None

    def save_bad_batch(self, stage: str, step: int, batch: dict[str, Any]) -> Path:
        """Save a batch whose loss was not finite; gives the file."""
        file = self.path / f"bad-batch-{step}.pt"
        if self.writer:
            save(file, {"stage": stage, "step": step, "batch": {k: v.cpu() for k, v in batch.items()}})
        return file

    def _folder(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def _checkpoints(self, stage: str) -> list[Path]:
        return sorted(self._folder(stage).glob("*.pt"))

    def _restore_rows(self, stored: Rows) -> None:
        """Take the rows that were stored with weights, whatever has become of the file of metrics.

        Stages come in order: rows of later ones are stored with their own weights, or belong to steps that are made
        again.
        """
        if stored != self._rows:
            self._rows = [dict(row) for row in stored]
            self._write_rows()

    def _write_rows(self) -> None:
        if self.writer:
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no POSIX system
            return
        file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{self.path} is in use by {owner}; wait for it, stop it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock = file

    def _say(self, text: str) -> None:
        if self.writer:
            print(text, file=sys.stderr, flush=True)


def _read_rows(folder: Path) -> Rows:
    """Rows of metrics.jsonl; a line that a crash cut short is left out, checkpoints have its row."""
    file = folder / "metrics.jsonl"
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and {"stage", "step"} <= row.keys():
            rows.append(row)
    return rows


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config with each field of the recipe as an entry of its own, so that a difference names the field."""
    recipe = config.get("recipe")
    fields = {f"recipe.{name}": value for name, value in recipe.items()} if isinstance(recipe, dict) else {}
    return {**config, **fields, "recipe": None} if fields else config
