"""Triton kernels compiled for a chip that need not be there, from launches recorded where nothing is compiled.

A launch is described as Triton's JIT would specialise it, in plain values, so that a process without the interpreter
can compile it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from narrow_offsets import narrow_offsets

KINDS = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


class Compiled(NamedTuple):
    """The compiler's report on one kernel; sizes in bytes, tensor memory in columns."""

    kernel: str
    tile: str
    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    matrix_instructions: bool
    dots: bool
    narrow_offsets: tuple[str, ...]


class Launch(NamedTuple):
    """A kernel by its module and name, its arguments as the compiler sees them, and its warps and stages."""

    module: str
    kernel: str
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, int]


def without_interpreter() -> None:
    """Switch Triton's interpreter off, in a process that compiles and has not imported Triton yet."""
    os.environ.pop("TRITON_INTERPRET", None)
    from quick_interpreter import quicken_front_end

    quicken_front_end()


def described(kernel, arguments: tuple, named: dict[str, Any]) -> Launch:
    """The launch ``kernel[grid](*arguments, **named)`` of a function of ``triton.jit``, interpreted or not."""
    parameters = inspect.signature(kernel.fn).parameters
    values = dict(zip(parameters, arguments)) | {k: v for k, v in named.items() if k in parameters}
    signature, constants, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(parameters.items()):
        if "constexpr" in str(parameter.annotation):
            constants[i,] = values[name]
            signature[name] = "constexpr"
        else:
            signature[name] = _kind(values[name], (i,), constants, attributes)
    options = {k: v for k, v in named.items() if k not in parameters}
    return Launch(kernel.fn.__module__, kernel.fn.__name__, signature, constants, attributes, options)


def _kind(value, path, constants, attributes):
    if isinstance(value, tuple):
        return tuple(_kind(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if isinstance(value, bool):
        return "u1"
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    address = value.data_ptr() if isinstance(value, torch.Tensor) else value
    if address % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    if isinstance(value, torch.Tensor):
        return "*" + KINDS[value.dtype]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


#: Options of ``triton.compile`` that say how a kernel is run, not what it computes.
OF_A_LAUNCH = {"num_warps", "num_stages", "num_ctas", "maxnreg"}
_parsed: dict[str, str] = {}
_reports: dict[str, Compiled] = {}


def check_front_end(launch: Launch) -> None:
    """Run the compiler's front end: it refuses types, shapes and constants' methods that the interpreter lets through.

    Raises:
        AssertionError: the compiler refuses the launch.
    """
    try:
        _front_end(launch)
    except Exception as error:  # its own holds syntax trees, which no process can send to another
        raise AssertionError(f"Triton does not compile {launch}:\n{error}") from None


def _front_end(launch: Launch):
    """The kernel as a module of MLIR, for every chip.

    The front end is given only the options that all chips share, so that it fails where it asks which chip it is.
    """
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    targets = [GPUTarget("cuda", chip, 32) for chip in (80, 90, 100, 120)]
    backends = [make_backend(target) for target in targets]
    first, *others = (vars(backend.parse_options({})) for backend in backends)
    shared = {
        name: value
        for name, value in first.items()
        if name not in OF_A_LAUNCH and all(options[name] == value for options in others)
    }
    context = ir.context()
    ir.load_dialects(context)
    backends[0].load_dialects(context)
    functions = backends[0].get_codegen_implementation(backends[0].parse_options({}))
    functions = {"min_dot_size": functions["min_dot_size"]}  # the others convert 8-bit floats, by the chip
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
    return source.make_ir(None, SimpleNamespace(**shared), functions, backends[0].get_module_map(), context)


def _ttir(launch: Launch) -> str:
    """The kernel behind the compiler's first passes, made once for all chips, warps and stages."""
    from triton.backends.nvidia.compiler import CUDABackend

    key = repr(launch._replace(options={}))
    if key not in _parsed:
        text = str(CUDABackend.make_ttir(_front_end(launch), {}, None, capability=90))
        assert "tensordesc" not in text, "a descriptor is other code on a chip that has none"
        _parsed[key] = text
    return _parsed[key]


def compile_launch(launch: Launch, chip: int) -> Compiled:
    """Down to machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    with tempfile.NamedTemporaryFile("w", suffix=".ttir") as file:
        file.write(_ttir(launch))
        file.flush()
        compiled = triton.compile(file.name, target=GPUTarget("cuda", chip, 32), options=launch.options)
    if compiled.hash not in _reports:
        _reports[compiled.hash] = _report(compiled)
    names = list(launch.signature)
    tile = {names[path[0]]: value for path, value in launch.constants.items()}
    tile = {k: tile[k] for k in ("ROWS", "COLS", "DEPTH", "OUT", "PRODUCT") if k in tile}
    return _reports[compiled.hash]._replace(kernel=launch.kernel, tile=str(tile | launch.options))


def _report(compiled) -> Compiled:
    ptx, ttir = compiled.asm["ptx"], compiled.asm["ttir"]
    return Compiled(
        compiled.name,
        "",
        *_registers(compiled.asm["cubin"]),
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", 0) or 0,
        any(name in ptx for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma")),
        "tt.dot" in ttir,
        tuple(narrow_offsets(ttir)),
    )


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack, where registers spill, of the assembled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    actual = re.search(r"REG:(\d+) STACK:(\d+)", report)
    return int(actual.group(1)), int(actual.group(2))
