"""Runs a function in the processes of a group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_programs  # noqa: F401 - the processes are forked from its own
import torch.multiprocessing


def run_ranks(main: Callable[[int, int, str], None], world: int, folder: Path) -> list[Any]:
    """Call ``main(rank, world, folder)`` in ``world`` processes; the contents of the ``<rank>.pt`` that each saves."""
    torch.multiprocessing.start_processes(main, (world, str(folder)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
