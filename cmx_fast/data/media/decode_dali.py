"""Decodes by DALI, on the GPU if there is one: pictures only, since it takes no sound out of video files.

Without a GPU it decodes H.264, H.265, VP8, VP9 and Motion JPEG (DALI 2.0; later versions not H.264 and H.265). It
reads all colours as BT.601. Frames that the file says to turn are turned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmx_fast.data.media.dali_pipelines import ENCODED, Graph, RefusedError, dali, decode, fn
from cmx_fast.data.media.decode_pyav import presented
from cmx_fast.data.media.moments import BrokenVideoError, resized, shown


def frames(path: Path, moments: list[float], short_side: int) -> Tensor:
    """See :func:`cmx_fast.data.media.decode.read_frames`."""
    (decoded,) = batch([(path, moments)], short_side)
    if isinstance(decoded, BrokenVideoError):
        raise decoded
    return decoded.cpu()


def batch(
    requests: Sequence[tuple[Path, list[float]]], short_side: int, threads: int = 1
) -> list[Tensor | BrokenVideoError]:
    """The frames of each path at its moments, as :func:`frames` gives them, or the error where a file breaks.

    They are decoded together by ``threads`` threads and left on the GPU.
    """
    results: list[Any] = [None] * len(requests)
    samples, orders, turns = {}, [], []
    for place, (path, moments) in enumerate(requests):
        try:
            begins, end, size, turn = presented(path)
            height_and_width = resized(path, *size, short_side)[::-1]
            numbers, order = shown(begins, end, moments, path).unique(return_inverse=True)
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            results[place] = BrokenVideoError(path, f"can't be read ({error.strerror})")
        except BrokenVideoError as error:
            results[place] = error
        else:
            samples[place] = {
                "encoded": content,
                "frames": numbers.to(torch.int32).numpy(),
                "size": np.array(height_and_width, np.float32),
            }
            orders.append(order)
            turns.append(turn)

    def take(number: int, pictures: Tensor) -> Tensor:
        return turns[number](pictures.permute(0, 3, 1, 2)[orders[number].to(pictures.device)]).contiguous()

    for place, pictures in zip(samples, decode(_GRAPH, list(samples.values()), take, threads), strict=True):
        refused = isinstance(pictures, RefusedError)
        results[place] = (
            BrokenVideoError(requests[place][0], f"DALI can't decode it ({pictures})")
            if refused
            else pictures
        )
    return results


def _frames(sources: dict[str, Any], gpu: bool) -> list[Any]:
    """Encoded files, frame numbers and (height, width) to resized frames (T, h, w, 3)."""
    video = fn.decoders.video(sources["encoded"], frames=sources["frames"], device="mixed" if gpu else "cpu")
    return [fn.resize(video, size=sources["size"], interp_type=dali.types.INTERP_LINEAR, antialias=True)]


_GRAPH = Graph((ENCODED, ("frames", dali.types.INT32, 1), ("size", dali.types.FLOAT, 1)), _frames)
