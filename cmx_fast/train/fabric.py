"""The devices of a command: the fabric of one that trains, and the device of one that doesn't."""

from __future__ import annotations

import os
import re

import torch
from lightning_fabric import Fabric

from cmx_fast.train import sharding

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def default_device() -> str:
    """The device of commands that don't train and have no ``--device``: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_device(name: str | None) -> str:
    """The device that ``--device`` names; None: :func:`default_device`.

    Raises:
        ValueError: another name than "cpu", "cuda" or "cuda:N", or a GPU that is not there.
    """
    if name is None:
        return default_device()
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise ValueError(f"device must be cpu, cuda or cuda:N; got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(found[1] or 0) >= count:
        raise ValueError(f"device {name}: PyTorch finds {count or 'no'} GPUs; --device cpu runs without")
    return name


def new_fabric(
    precision: str,
    sync_bn: bool = False,
    fsdp: bool = False,
    *,
    device: str | None = None,
    players: bool = False,
) -> Fabric:
    """Launch Fabric on one device, or under torchrun on one per process, where DDP replicates and FSDP splits modules.

    Args:
        device: as of :func:`chosen_device`; None: what Fabric finds.
        players: modules have players that take turns, so that a step gives some parameters no gradient.

    Raises:
        ValueError: an unknown precision; ``fsdp`` or ``sync_bn`` in one process; ``sync_bn`` without a GPU; one GPU by
            number for several processes; as :func:`chosen_device`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    if fsdp and world == 1:
        raise ValueError("--fsdp is for several processes (torchrun); this is one")
    kind, _, number = ("auto" if device is None else chosen_device(device)).partition(":")
    if number and world > 1:
        raise ValueError(
            f"--device {device} is for one process; torchrun gives each of {world} a GPU of its own"
        )
    ddp = "ddp_find_unused_parameters_true" if players else "ddp"
    strategy = sharding.strategy(world) if fsdp else ddp if world > 1 else "auto"
    fabric = Fabric(
        accelerator=kind,
        devices=[int(number)] if number else local,
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
