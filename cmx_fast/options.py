"""The options that several commands have, each worded once; for --help this is all that is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

#: The choices of ``--logger``.
LOGGERS = ("tensorboard", "wandb")


def words(*choices: str) -> Callable[[str], list[str]]:
    """Complete one of these words, as typer asks for it."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


class Sets(NamedTuple):
    """Beside an option in its annotation: the recipe's field that the option stands for."""

    field: str


Out = Annotated[Path, typer.Option(help="Run folder to write.")]
Preset = Annotated[str, typer.Option(help="Recipe: paper, or demo for two CPU cores.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, noise and batches.")]
FirstSeed = Annotated[int, typer.Option(help="Seed of weights, noise and batches; of --seeds the first.")]
Seeds = Annotated[
    int, typer.Option(min=1, help="Train with this many seeds, from --seed on; report mean and spread.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Samples of a step, of all processes together: as --set batch=N."),
    Sets("batch"),
]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate: as --set lr=X."), Sets("lr")]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device: cpu, cuda or cuda:N; default: a GPU if there is one.",
        autocompletion=words("cpu", "cuda"),
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read and decode, 0: this one; default: one a core, at most 8."),
]
Precision = Annotated[
    str, typer.Option(help="Arithmetic: fp32, or bf16 (mixed).", autocompletion=words("fp32", "bf16"))
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the networks with torch.compile.")]
SyncBN = Annotated[
    bool, typer.Option("--sync-bn", help="Under torchrun: batch norms see the batch of all processes (GPUs).")
]
FSDP = Annotated[
    bool,
    typer.Option("--fsdp", help="Under torchrun: split weights, gradients and optimiser over the processes."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run to the same numbers.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Pretrained visual encoder, NAME or NAME=FILE, e.g. efficientnet-lite0: docs/encoders.md."
    ),
]
#: Option of the commands that open a run.
EncoderFile = Annotated[
    Path | None, typer.Option(help="Weights of the run's pretrained encoder, if not where the run had them.")
]
Loggers = Annotated[
    list[str],
    typer.Option(
        "--logger",
        help="Log also to tensorboard or wandb (offline); repeatable. metrics.csv is always written.",
        autocompletion=words(*LOGGERS),
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable files and count them.")]
#: A command that trains names its recipe: ``set: Annotated[Set, CMACRecipe]``.
Set = Annotated[list[str], typer.Option(help="Change the recipe: NAME=VALUE, repeatable.")]
#: Options of the commands that evaluate a run.
RunModel = Annotated[str | None, typer.Option(help="Model of the run; default: its first.")]
RunSeed = Annotated[int | None, typer.Option(help="Seed of the run's model; default: its first.")]
RunData = Annotated[Path | None, typer.Option(help="Data in the run's layout; default: the run's.")]


def layout(choices: Sequence[str]) -> Any:
    """The option ``--dataset`` of a command that takes these layouts."""
    return typer.Option(
        help=f"Layout of the data: {', '.join(choices)}; default: recognised by its lists and folders.",
        autocompletion=words(*choices),
    )


def choose_models(names: list[str], choices: Iterable[str]) -> list[str]:
    """The choices that ``names`` holds, in their own order; "all", where it is a choice, stands for all others.

    Raises:
        ValueError: no name, or one that is no choice.
    """
    choices = list(choices)
    unknown = [name for name in names if name not in choices]
    if unknown or not names:
        raise ValueError(
            f"model must be one or more of {', '.join(choices)}; got {', '.join(unknown) or 'none'}"
        )
    return [choice for choice in choices if choice != "all" and (choice in names or "all" in names)]
