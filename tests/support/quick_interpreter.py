"""Triton's interpreter and front end without what they repeat at every operation: the same results, sooner."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

POINTER = np.dtype(np.uint64)


class _EveryModule:
    """In place of a kernel: its globals name both modules whose functions the interpreter replaces by its own."""

    __globals__: ClassVar = {"tl": tl, "core": tl.core}


def quicken_front_end() -> None:
    """Make a type of Triton's language once for every element and shape, in this process, for good."""
    if tl.tensor.__init__ is not _new_tensor:
        tl.tensor.__init__ = _new_tensor
        tl.block_type.__init__ = _known_block_types(tl.block_type.__init__)


def quicken() -> None:
    """Replace the slow parts of the interpreter in this process, for good. A second call does nothing."""
    quicken_front_end()
    if interpreter._patch_attr is not _patch_attr:
        interpreter._patch_attr = _patch_attr
        interpreter._patch_lang = functools.partial(_patched_once, functools.cache(interpreter._patch_lang))
        interpreter._get_np_dtype = functools.partial(_numpy_type, functools.cache(interpreter._get_np_dtype))
        interpreter._convert_float = functools.partial(_convert_float, interpreter._convert_float)


def _patched_once(patch, kernel) -> interpreter._LangPatchScope:
    """The interpreter's functions stay in the language; it puts them there and takes them out at every call."""
    patch(_EveryModule)
    return interpreter._LangPatchScope()  # nothing to restore


def _patch_attr(package, name, member, builder, scope) -> None:
    """A function of the language that gets the interpreter's semantics whatever its caller hands it."""
    semantic = interpreter.interpreter_semantic

    def function(*args, **kwargs):
        kwargs["_semantic"] = semantic
        return member(*args, **kwargs)

    scope.set_attr(package, name, function)


def _numpy_type(of_scalar, kind: tl.dtype) -> np.dtype:
    scalar = kind.scalar
    return POINTER if scalar.is_ptr() else of_scalar(scalar)


def _convert_float(convert, values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding) -> np.ndarray:
    """A bfloat16 is the upper half of a float32. The interpreter drops the lower, unless told to round."""
    if source == tl.bfloat16 and target == tl.float32:
        return np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16
    if source == tl.float32 and target == tl.bfloat16 and rounding is None:
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return convert(values, source, target, rounding)


def _new_tensor(tensor, handle, kind: tl.dtype) -> None:
    tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
    tensor.shape, tensor.numel = _shape(tuple(kind.shape) if kind.is_block() else ())


@functools.cache
def _shape(sizes: tuple[int, ...]) -> tuple[tl.tuple, tl.constexpr]:
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))


def _known_block_types(make):
    known: dict[tuple, dict] = {}

    def new_block_type(block, element: tl.dtype, shape) -> None:
        sizes = (size.value if isinstance(size, tl.constexpr) else size for size in shape)
        key = element.name, getattr(element, "address_space", None), *sizes
        if key not in known:
            make(block, element, shape)
            known[key] = dict(vars(block))
        vars(block).update(known[key])

    return new_block_type
