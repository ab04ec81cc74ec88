"""Runs batches through DALI's pipelines, on the GPU if there is one, and gives tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast._extras import require

dali = require("nvidia.dali", "dali")
fn = require("nvidia.dali.fn", "dali")


@dataclass(frozen=True)
class Graph:
    """A computation by DALI. One per module that decodes: pipelines are built once for each.

    Attributes:
        inputs: names of the arrays that each sample brings, and how many dimensions each has.
        outputs: a function of the inputs by name, and of "there is a GPU", to the outputs.
    """

    inputs: tuple[tuple[str, Any, int], ...]
    outputs: Callable[[dict[str, Any], bool], Sequence[Any]]


#: The input that every graph decodes: a file's bytes.
ENCODED = ("encoded", dali.types.UINT8, 1)


class RefusedError(RuntimeError):
    """DALI can't decode a sample; the message is its reason."""


def decode(
    graph: Graph,
    samples: Sequence[dict[str, np.ndarray]],
    take: Callable[..., Any],
    threads: int = 1,
) -> list[Any]:
    """``take(place, *outputs)`` of each sample, or a :class:`RefusedError`; all samples are decoded together.

    ``take`` has to copy what it returns: DALI uses the outputs' memory again.
    """
    if not samples:
        return []
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    try:
        outputs = _run(graph, samples, threads, gpu)
    except RuntimeError as error:
        if len(samples) == 1:
            return [RefusedError(_reason(error))]
        return [  # DALI does not say which one it was
            decode(graph, [sample], lambda _, *output, place=place: take(place, *output), threads)[0]
            for place, sample in enumerate(samples)
        ]
    results = [take(place, *(output[place] for output in outputs)) for place in range(len(samples))]
    if gpu is not None:
        torch.cuda.current_stream(gpu).synchronize()  # the copies are made before DALI writes there again
    return results


def _run(
    graph: Graph, samples: Sequence[dict[str, np.ndarray]], threads: int, gpu: int | None
) -> list[list[Tensor]]:
    pipeline = _pipeline(graph, len(samples), threads, gpu)
    for name, *_ in graph.inputs:
        pipeline.feed_input(name, [sample[name] for sample in samples])
    try:
        outputs = pipeline.run()
    except RuntimeError:
        _pipeline.cache_clear()  # a pipeline that failed once is of no further use
        raise
    if gpu is not None:
        torch.cuda.synchronize(gpu)
    return [[torch.from_dlpack(output[place]) for place in range(len(samples))] for output in outputs]


@functools.lru_cache(8)
def _pipeline(graph: Graph, count: int, threads: int, gpu: int | None) -> Any:
    pipeline = dali.Pipeline(
        batch_size=count,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    with pipeline:
        sources = {
            name: fn.external_source(name=name, dtype=dtype, ndim=dimensions)
            for name, dtype, dimensions in graph.inputs
        }
        pipeline.set_outputs(*graph.outputs(sources, gpu is not None))
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """The part of DALI's message between the operator's traceback in Python and its own in C++."""
    message = str(error).partition("encountered:")[2] or str(error)
    return next((line.strip() for line in message.splitlines() if line.strip()), "?")
