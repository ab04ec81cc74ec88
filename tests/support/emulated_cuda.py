"""The CUDA C++ kernels on the CPU: their source compiled with tests/cuda/emulator, called like the operators."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
# The kernels keep numbers of several types in one shared memory, which a GPU's compiler allows.
FLAGS = [
    "-std=c++20",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
]
FOLDERS = [f"-I{ROOT / 'tests/cuda/emulator'}", f"-I{ROOT / 'csrc'}"]


class ElementType(IntEnum):
    """The enum of the same name in tests/cuda/pyramid_correlation.cpp."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2


class Norm(IntEnum):
    """``cmx::Norm`` of csrc/cuda/pyramid_maps.cuh."""

    COSINE = 0
    SOFTMAX = 1
    NONE = 2


NORMS = tuple(norm.name.lower() for norm in Norm)


class Arguments(ctypes.Structure):
    """The struct of the same name in tests/cuda/pyramid_correlation.cpp."""

    _fields_ = [
        ("features", ctypes.c_void_p),
        ("filters", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 5),
        ("type", ctypes.c_int),
        ("levels", ctypes.c_int),
        ("norm", ctypes.c_int),
    ]


def compile_to(path: Path, source: str, *flags: str, first: Path | None = None) -> Path:
    """tests/cuda/<source> as a program or library, of the kernels in ``first`` where it has them."""
    folders = [FOLDERS[0], *([f"-I{first}"] if first else []), *FOLDERS[1:]]
    command = [COMPILER, *FLAGS, *folders, *flags, str(ROOT / "tests/cuda" / source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def shared_library(source: str) -> Path:
    """The library of tests/cuda/<source>, compiled once for all processes that test, and anew when a source changes."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for folder in ("csrc/common", "csrc/cuda", "tests/cuda"):
        for file in sorted(
            path for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cuh", ".cpp")
        ):
            digest.update(file.read_bytes())
    path = ROOT / "build/emulated" / f"{Path(source).stem}-{digest.hexdigest()[:16]}.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_to(path.with_suffix(".new"), source, "-fPIC", "-shared").rename(path)
    return path


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels of tests/cuda/pyramid_correlation.cpp."""
    loaded = ctypes.CDLL(str(shared_library("pyramid_correlation.cpp")))
    loaded.forward.restype = loaded.backward.restype = ctypes.c_char_p
    return loaded


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """A dimension of one has none, as in csrc/cuda/pyramid_correlation_kernel.cu."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride()))


def arguments(features: Tensor, filters: Tensor, levels: int, norm: str) -> Arguments:
    """The problem as the kernels take it; it holds no reference to the tensors."""
    element_type = ElementType[str(features.dtype).removeprefix("torch.").upper()]
    return Arguments(
        features.data_ptr(), filters.data_ptr(), (ctypes.c_int64 * 5)(*features.shape),
        (ctypes.c_int64 * 5)(*strides_of(features)), element_type, levels, Norm[norm.upper()],
    )  # fmt: skip


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _check(message: bytes | None) -> None:
    if message:
        raise RuntimeError(message.decode())


def _cells(features: Tensor, levels: int) -> int:
    times, height, width = features.shape[2:]
    return times * sum(-(-height // 2**level) * -(-width // 2**level) for level in range(levels))


def _forward(features: Tensor, filters: Tensor, prediction: Tensor | None, levels: int, norm: str):
    filters = filters.contiguous()
    batch, cells = len(features), _cells(features, levels)
    out = filters.new_empty(batch, *features.shape[2:])
    losses = None if prediction is None else filters.new_empty(batch)
    values = filters.new_empty(batch, cells)
    inverse_norms = filters.new_empty(batch, cells if norm == "cosine" else 0)
    if batch:
        described = arguments(features, filters, levels, norm)
        tensors = (prediction, out, losses, values, inverse_norms if norm == "cosine" else None)
        _check(library().forward(ctypes.byref(described), *map(_pointer, tensors)))
    return out, losses, values if norm == "cosine" else filters.new_empty(batch, 0), inverse_norms


def pyramid_correlation_fwd(features: Tensor, filters: Tensor, levels: int, norm: str):
    """As the operator ``pyramid_correlation_cuda_fwd``."""
    out, _, *kept = _forward(features, filters, None, levels, norm)
    return out, *kept


def attention_consistency_fwd(features: Tensor, filters: Tensor, prediction: Tensor, levels: int, norm: str):
    """As the operator ``attention_consistency_cuda_fwd``."""
    difference, losses, *kept = _forward(features, filters, prediction.contiguous(), levels, norm)
    return losses, difference, *kept


def pyramid_correlation_bwd(
    grad_map: Tensor,
    features: Tensor,
    filters: Tensor,
    attention: Tensor,
    cosines: Tensor,
    inverse_norms: Tensor,
    levels: int,
    norm: str,
):
    """As the operator ``pyramid_correlation_cuda_bwd``."""
    filters, grad_map, attention = (t.contiguous() for t in (filters, grad_map, attention))
    batch, cells = len(features), _cells(features, levels)
    dfeatures, dfilters = torch.empty_like(features), torch.empty_like(filters)
    if not batch:
        return dfeatures, dfilters
    filter_factors = filters.new_empty(batch, cells)
    window_factors = filters.new_empty(batch, cells) if norm == "cosine" else None
    parts = library().radial_parts(*features.shape[2:], levels)
    radial = filters.new_empty(batch, parts) if norm == "cosine" else None
    described = arguments(features, filters, levels, norm)
    tensors = (grad_map, attention, cosines, inverse_norms, filter_factors, window_factors, radial, dfeatures)
    strides = (ctypes.c_int64 * 5)(*strides_of(dfeatures))
    _check(library().backward(ctypes.byref(described), *map(_pointer, tensors), strides, _pointer(dfilters)))
    return dfeatures, dfilters


def kernels() -> SimpleNamespace:
    """The functions above under the names of the Triton launchers; skips the test where there is no compiler."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the emulated kernels with")
    return SimpleNamespace(
        pyramid_correlation_fwd=pyramid_correlation_fwd,
        pyramid_correlation_bwd=pyramid_correlation_bwd,
        attention_consistency_fwd=attention_consistency_fwd,
    )
