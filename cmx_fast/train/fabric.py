"""The devices of a command: the fabric of one that trains, and the device of one that doesn't."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric

from cmx_fast.train import sharding

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


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
