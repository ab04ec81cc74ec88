"""Decoding by DALI, on the GPU if there is one: pictures only, since it takes no sound out of video files.

Without a GPU it decodes H.264, H.265, VP8, VP9 and Motion JPEG (DALI 2.0; later versions not H.264 and H.265). It
reads all colours as BT.601 and does not turn a picture that the file says to turn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .decode_moments import BrokenVideoError, resized, shown
from .decode_pyav import presented

dali = require("nvidia.dali", "cuda")
fn = require("nvidia.dali.fn", "cuda")


def frames(path: Path, moments: list[float], short_side: int) -> Tensor:
    """See :func:`cmx_fast.data.decode.read_frames`."""
    (found,) = batch([(path, moments)], short_side)
    if isinstance(found, BrokenVideoError):
        raise found
    return found.cpu()


def batch(
    requests: Sequence[tuple[Path, list[float]]], short_side: int, threads: int = 1
) -> list[Tensor | BrokenVideoError]:
    """What :func:`frames` gives for each path and its moments, decoded together by ``threads`` threads and left on
    the GPU; the error where a file breaks."""
    found: list[Any] = [None] * len(requests)
    inputs = {}
    for place, (path, moments) in enumerate(requests):
        try:
            begins, end, size = presented(path)
            target = resized(path, *size, short_side)
            wanted, order = shown(begins, end, moments, path).unique(return_inverse=True)
        except BrokenVideoError as error:
            found[place] = error
        else:
            inputs[place] = (path, wanted.to(torch.int32).numpy(), order, target)
    try:
        decoded = _run(list(inputs.values()), threads) if inputs else []
    except RuntimeError as error:
        if len(requests) > 1:  # DALI does not say which one it was
            return [batch([request], short_side, threads)[0] for request in requests]
        reason = next((line for line in str(error).splitlines() if "rror" in line or "ailed" in line), "?")
        return [BrokenVideoError(requests[0][0], f"DALI can't decode it ({reason.strip()})")]
    for place, pictures in zip(inputs, decoded, strict=True):
        found[place] = pictures
    return found


def _run(inputs: list[tuple[Path, np.ndarray, Tensor, tuple[int, int]]], threads: int) -> list[Tensor]:
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    pipeline = _pipeline(len(inputs), threads, gpu)
    pipeline.feed_input("encoded", [np.fromfile(path, np.uint8) for path, *_ in inputs])
    pipeline.feed_input("frames", [wanted for _, wanted, *_ in inputs])
    pipeline.feed_input("size", [np.array(size[::-1], np.float32) for *_, size in inputs])
    try:
        (pictures,) = pipeline.run()
    except RuntimeError:
        _pipeline.cache_clear()  # a pipeline that failed once is of no further use
        raise
    if gpu is not None:
        torch.cuda.synchronize(gpu)
    views = [torch.from_dlpack(pictures[place]) for place in range(len(inputs))]  # copied before the next run
    return [
        view.permute(0, 3, 1, 2)[order.to(view.device)].contiguous()
        for view, (_, _, order, _) in zip(views, inputs, strict=True)
    ]


@functools.lru_cache(4)
def _pipeline(count: int, threads: int, gpu: int | None) -> Any:
    """Encoded files, frame numbers and (height, width) to resized frames, ``count`` files at a time."""
    pipeline = dali.Pipeline(
        batch_size=count,
        num_threads=threads,
        device_id=gpu,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        numbers = fn.external_source(name="frames", dtype=dali.types.INT32, ndim=1)
        size = fn.external_source(name="size", dtype=dali.types.FLOAT, ndim=1)
        video = fn.decoders.video(encoded, frames=numbers, device="cpu" if gpu is None else "mixed")
        pipeline.set_outputs(
            fn.resize(video, size=size, interp_type=dali.types.INTERP_LINEAR, antialias=True)
        )
    pipeline.build()
    return pipeline
