"""Runs a function in the processes of a group."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing

# Forked from a process that has imported these and computed nothing: importing them takes each process seconds.
multiprocessing.set_forkserver_preload(["torch", "cmx_fast.distributed", "cmx_fast.train.loop"])


def run_ranks(main: Callable[[int, int, str], None], world: int, folder: Path) -> list[Any]:
    """Call ``main(rank, world, folder)`` in ``world`` processes; the contents of the ``<rank>.pt`` that each saves."""
    torch.multiprocessing.start_processes(main, (world, str(folder)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
