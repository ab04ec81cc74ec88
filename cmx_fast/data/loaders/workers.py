"""Loads in worker processes that may die: they are started again, and no batch is lost or comes twice."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

#: The default number of loader workers, or of a batch decoder's threads.
CORES = min(8, os.cpu_count() or 1)
#: Deaths of workers at one batch after which loading stops: the cause is in the data.
MOST_DEATHS = 3


def load_batches(
    dataset: Dataset[Any],
    batches: Iterable[list[int]],
    *,
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """``dataset``'s items of each batch of indices, in order, collated as by ``torch.utils.data.DataLoader``.

    When a worker dies (killed for memory, crashed in a decoder), the batches that had been given to workers are loaded
    again one by one, and then all workers go on.

    Args:
        workers: processes; 0 loads in this one.
        collate: makes a batch of items; default the loader's own.

    Raises:
        RuntimeError: a worker died :data:`MOST_DEATHS` times at one batch; it says which.
    """
    pending: deque[list[int]] = deque()  # given to workers, not yet handed out

    def drawn() -> Iterator[list[int]]:
        for batch in batches:
            pending.append(batch)
            yield batch

    batches = iter(batches)
    options = {"collate_fn": collate, "pin_memory": pin_memory}
    while True:
        try:
            for loaded in _loader(dataset, drawn(), workers, options):
                pending.popleft()
                yield loaded
            return
        except _WorkerDiedError as error:
            _say(error)
        # One by one: a batch that kills its worker would take others' results with it, and would be hard to name.
        while pending:
            yield _alone(dataset, pending[0], options)
            pending.popleft()


class _WorkerDiedError(Exception):
    """A worker process ended without being told to."""


def _alone(dataset: Dataset[Any], batch: list[int], options: dict[str, Any]) -> Any:
    """Load one batch in a worker of its own, with a few tries."""
    for attempt in range(1, MOST_DEATHS + 1):
        try:
            return next(_loader(dataset, iter([batch]), 1, options))
        except _WorkerDiedError as error:
            if attempt == MOST_DEATHS:
                raise RuntimeError(
                    f"a worker died {attempt} times at items {batch} ({error}); look for a file there that crashes its "
                    "decoder, or for too little memory"
                ) from error
            _say(error)


def _loader(
    dataset: Dataset[Any], batches: Iterator[list[int]], workers: int, options: dict[str, Any]
) -> Iterator[Any]:
    """PyTorch's loader, with a worker's death as an error of its own."""
    handler = signal.getsignal(signal.SIGCHLD) if workers and hasattr(signal, "SIGCHLD") else None
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        # Its own: a loader draws its seed, and a resume has restored the global stream.
        generator=torch.Generator(),
        **options,
    )
    try:
        iterator = iter(loader)
        if handler is not None and signal.getsignal(signal.SIGCHLD) != handler:
            # The loader's own would raise wherever this process happens to be, not here.
            signal.signal(signal.SIGCHLD, handler)
        yield from iterator
    except (RuntimeError, EOFError, ConnectionError) as error:
        # "Caught ... in DataLoader worker process": the data's own error. A worker that dies while it hands tensors
        # over is a connection's end.
        died = not isinstance(error, RuntimeError) or "DataLoader worker (" in str(error)
        if workers == 0 or "DataLoader worker process" in str(error) or not died:
            raise
        raise _WorkerDiedError(repr(error)) from error


def _say(error: Exception) -> None:
    print(f"a worker died and is started again: {error}", file=sys.stderr, flush=True)
