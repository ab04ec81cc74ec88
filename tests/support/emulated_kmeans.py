"""The CUDA C++ k-means step on the CPU: its source compiled with tests/cuda/emulator, called like the operator."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulated_cuda import COMPILER, shared_library
from torch import Tensor


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels of tests/cuda/kmeans.cpp."""
    return load(shared_library("kmeans.cpp"))


def load(path: Path) -> ctypes.CDLL:
    """A library compiled of tests/cuda/kmeans.cpp."""
    loaded = ctypes.CDLL(str(path))
    loaded.step.restype = ctypes.c_char_p
    return loaded


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def planned_step(
    x: Tensor,
    centroids: Tensor,
    weight: Tensor | None,
    metric: str,
    normalize: bool,
    own: ctypes.CDLL | None = None,
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """The operator's results, and how many blocks there were and rows of sums."""
    assert x.dtype in (torch.bfloat16, torch.float16) and (x.shape[1] <= 1 or x.stride(1) == 1)
    centroids, weight = centroids.contiguous(), None if weight is None else weight.contiguous()
    (k, width), strict = centroids.shape, metric == "cosine"
    labels, sums = x.new_empty(x.shape[:2], dtype=torch.int64), centroids.new_empty(k, width)
    counts = centroids.new_empty(k, dtype=torch.int64 if weight is None else torch.float64)
    inertia = centroids.new_empty((), dtype=torch.float64)
    strides = (ctypes.c_int64 * 2)(0 if len(x) == 1 else x.stride(0), x.stride(2))
    plan = (ctypes.c_int64 * 2)()
    message = (own or library()).step(
        _pointer(x), (ctypes.c_int64 * 3)(*x.shape), strides, int(x.dtype == torch.float16), _pointer(centroids), k,
        _pointer(weight), int(normalize or strict), int(strict), _pointer(labels), _pointer(sums),
        _pointer(counts if weight is None else None), _pointer(None if weight is None else counts), _pointer(inertia),
        plan,
    )  # fmt: skip
    if message:
        raise RuntimeError(message.decode())
    return (labels, sums, counts, inertia), (plan[0], plan[1])


def kmeans_step(
    x: Tensor, centroids: Tensor, weight: Tensor | None, metric: str, normalize: bool
) -> tuple[Tensor, ...]:
    """As the operator ``kmeans_cuda_step``."""
    return planned_step(x, centroids, weight, metric, normalize)[0]


def kernels() -> SimpleNamespace:
    """The function above under the name of the Triton launcher; skips the test where there is no compiler."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the emulated kernels with")
    return SimpleNamespace(kmeans_step=kmeans_step)
