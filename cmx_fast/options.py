"""The options that several commands have, each worded once, and the fabric and the choice that they stand for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lightning_fabric import Fabric

from cmx_fast.train import sharding
from cmx_fast.train.settings import Checked

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}

Out = Annotated[Path, typer.Option(help="Run folder to write.")]
Preset = Annotated[str, typer.Option(help="Recipe: paper, or demo for two CPU cores.")]
Seeds = Annotated[int, typer.Option(min=1, help="Train with seeds 0 to N-1; report mean and spread.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, noise and batches.")]
Precision = Annotated[str, typer.Option(help="Arithmetic: fp32, or bf16 (mixed).")]
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
    Path | None, typer.Option(help="Weights of the run's --encoder, if not where the run had them.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable files and count them.")]
Set = Annotated[list[str], typer.Option(help="Change the recipe: NAME=VALUE, repeatable.")]
#: Option of the commands that evaluate a run.
RunData = Annotated[Path | None, typer.Option(help="Data in the run's layout; default: the run's.")]


def changes(assignments: list[str], recipe: type[Checked]) -> dict[str, Any]:
    """["alpha=0.5", "contrast=cross"] as a dictionary, each value of the type of the recipe's field.

    If a name is given twice, its last value counts.

    Raises:
        ValueError: no assignment, a name that the recipe doesn't have, or a value of another type.
    """
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE; got {assignment!r}")
        texts[name] = value
    return recipe.read(texts)


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


def default_device() -> str:
    """The device of commands that don't train."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def new_fabric(precision: str, sync_bn: bool = False, fsdp: bool = False, *, players: bool = False) -> Fabric:
    """Launch Fabric on one device, or under torchrun on one per process, where DDP replicates and FSDP splits modules.

    ``players``: modules have players that take turns, so that a step gives some parameters no gradient.

    Raises:
        ValueError: an unknown precision; ``fsdp`` or ``sync_bn`` in one process; ``sync_bn`` without a GPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    if fsdp and world == 1:
        raise ValueError("--fsdp is for several processes (torchrun); this is one")
    ddp = "ddp_find_unused_parameters_true" if players else "ddp"
    strategy = sharding.strategy(world) if fsdp else ddp if world > 1 else "auto"
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=PRECISIONS[precision],
    )  # type: ignore[arg-type]
    fabric.launch()
    if sync_bn and (fabric.world_size == 1 or fabric.device.type != "cuda"):
        raise ValueError(
            f"--sync-bn is for several processes on GPUs (torchrun); this is {fabric.world_size} on "
            f"{fabric.device.type}, where batch norms see their own process's batch"
        )
    return fabric
