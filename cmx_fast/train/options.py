"""What the training commands' options stand for."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from lightning_fabric import Fabric

from cmx_fast.train import sharding
from cmx_fast.train.settings import Checked

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def changes(assignments: list[str], recipe: type[Checked]) -> dict[str, Any]:
    """["alpha=0.5", "contrast=cross"] as a dictionary, each value of the type of the recipe's field.

    Of a name that is given twice the last value counts.

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


SyncBN = Annotated[
    bool, typer.Option("--sync-bn", help="Under torchrun: batch norms see the batch of all processes (GPUs).")
]


FSDP = Annotated[
    bool,
    typer.Option("--fsdp", help="Under torchrun: split weights, gradients and optimiser over the processes."),
]


def new_fabric(precision: str, sync_bn: bool = False, fsdp: bool = False) -> Fabric:
    """One device, or under torchrun one per process, whose replicas are kept alike by DDP or are in pieces by FSDP.

    Raises:
        ValueError: ``fsdp`` or ``sync_bn`` in one process; ``sync_bn`` without a GPU.
    """
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    if fsdp and world == 1:
        raise ValueError("--fsdp is for several processes (torchrun); this is one")
    strategy = sharding.strategy(world) if fsdp else "ddp" if world > 1 else "auto"
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
