"""The frame of a training command: devices, run folder, messages, and an end that can be resumed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import typer

from cmx_fast.data.sets.recordings import left_out
from cmx_fast.train.fabric import new_fabric
from cmx_fast.train.loggers import check_loggers, open_logger
from cmx_fast.train.loop import Interrupted, Module, Stage, run_stage
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.settings import Checked


class Split(Protocol):
    """Data of which some files can't be used.

    Attributes:
        skipped: file and reason of each; grows where files break while they are read.
    """

    skipped: list[tuple[Path, str]]


def require_a_batch(count: int, batch: int, samples: str) -> None:
    """Raise ValueError if there are fewer samples to train on than a batch takes; ``samples`` names them."""
    if count < batch:
        raise ValueError(f"{count} {samples} to train on are fewer than a batch of {batch}; --set batch=...")


class Session:
    """The devices, the run folder and the messages of one call of a training command.

    A command makes a session, opens the data, trains stages while a run folder is open, and evaluates::

        session = Session("train cmac", recipe, preset=preset, precision=precision, ...)
        train, test = ...
        with session.recording(out, {"data": str(data)}, resume=resume) as run:
            session.train(Stage(...))
        if session.fabric.is_global_zero:
            evaluate_run(run.finished(), test)

    Args:
        command: the words after ``cmx``, as the run folder and messages name it.
        preset, device, compile, sync_bn, fsdp: the command's options; None where it has no such option. A command
            without ``sync_bn`` runs in one process.
        loggers: as of :func:`cmx_fast.train.loggers.open_logger`, beside the run folder's files.
        players: its modules have players that take turns.

    Attributes:
        fabric: the devices.
        run: the run folder, while it is open.

    Raises:
        ValueError: several processes of a command that runs in one, or no such logger; as
            :func:`cmx_fast.train.fabric.new_fabric`.
        MissingExtraError: a logger's package is not installed.
    """

    run: RunFolder

    def __init__(
        self,
        command: str,
        recipe: Checked,
        *,
        precision: str,
        preset: str | None = None,
        device: str | None = None,
        compile: bool | None = None,
        sync_bn: bool | None = None,
        fsdp: bool | None = None,
        loggers: Sequence[str] = (),
        players: bool = False,
    ):
        check_loggers(loggers)
        self._loggers = tuple(loggers)
        self.fabric = new_fabric(precision, bool(sync_bn), bool(fsdp), device=device, players=players)
        world = self.fabric.world_size
        if sync_bn is None and world > 1:
            raise ValueError(f"cmx {command} runs in one process; got a world of {world}")
        self._config = {
            "command": command,
            "preset": preset,
            "recipe": recipe.as_dict(),
            "precision": precision,
            "compile": compile,
            "sync_bn": sync_bn,
            "fsdp": fsdp,
            "processes": None if sync_bn is None else world,
        }
        self._compile = bool(compile)
        self._watched: list[tuple[Split, int]] = []

    def say(self, text: str) -> None:
        """Print on the standard error stream, once for all processes."""
        if self.fabric.is_global_zero:
            print(text, file=sys.stderr, flush=True)

    def watch(self, *splits: Split) -> None:
        """Name the files of these splits that break from now on, once, when training ends."""
        self._watched += [(split, len(split.skipped)) for split in splits]

    @contextmanager
    def recording(
        self, out: Path, config: dict[str, Any], *, resume: bool, splits: tuple[Split, ...] = ()
    ) -> Iterator[RunFolder]:
        """Open a run folder for the stages within the block; after it, write metrics.csv.

        Ctrl-C and SIGTERM end the command with status 130, once the checkpoint is written.

        Args:
            config: entries of config.json beside the session's own: all that decides the numbers.
            splits: the data, whose skipped files the config names; they are watched as by :meth:`watch`.
        """
        own = {name: value for name, value in self._config.items() if value is not None}
        if splits:
            own["skipped"] = [(str(path), reason) for split in splits for path, reason in split.skipped]
        self.run = RunFolder(out, {**own, **config}, resume=resume, writer=self.fabric.is_global_zero)
        self.watch(*splits)
        if self.fabric.is_global_zero:
            self.run.loggers = [open_logger(name, self.run.path, self.run.config) for name in self._loggers]
        if "dataset" in config:  # where no option names it, it was recognised
            self.say(f"layout of the data: {config['dataset']}")
        try:
            yield self.run
        except Interrupted as stopped:
            self.say(f"{stopped}; continue with the same command and --resume")
            raise typer.Exit(130) from None
        finally:
            self._say_broken()
            for logger in self.run.loggers:
                logger.finalize("success")
        if self.fabric.is_global_zero:
            self.run.write_csv()

    def _say_broken(self) -> None:
        """Name the files that broke. Each process names its own, which no other has read."""
        broken = {path: reason for split, count in self._watched for path, reason in split.skipped[count:]}
        self._watched = []
        if broken:
            print(f"files broke during training{left_out(list(broken.items()))}", file=sys.stderr, flush=True)

    def train(self, stage: Stage[Module]) -> Module:
        """Train a stage in the open run folder; see :func:`cmx_fast.train.loop.run_stage`."""
        return run_stage(self.fabric, self.run, stage, compile=self._compile)
