"""The parts of a simulation, shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Part = TypeVar("Part")
Written = TypeVar("Written")

#: Parts that a process gets at a time.
CHUNK = 4


def each(write: Callable[[Part], Written], parts: Sequence[Part], workers: int) -> Iterator[Written]:
    """The results of ``write`` for every part, in their order. One worker is this process, more are new ones."""
    if workers == 1:
        yield from map(write, parts)
        return
    with ProcessPoolExecutor(min(workers, len(parts)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, parts, chunksize=CHUNK)
