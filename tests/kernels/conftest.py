"""Where the launchers run: on the GPU, or on the CPU under Triton's interpreter (tests/conftest.py switches it on)."""

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton
import triton.runtime.interpreter
from ahead_of_time import compile_call
from quick_interpreter import quicken
from triton_compiler import check_front_end, described, without_interpreter

KERNEL_TYPE = (
    triton.runtime.interpreter.InterpretedFunction
    if triton.knobs.runtime.interpret
    else triton.runtime.JITFunction
)


quicken()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def compilers():
    """A pool without the interpreter: two processes, or one beside each of several that test."""
    context = multiprocessing.get_context("spawn")
    processes = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    with ProcessPoolExecutor(processes, context, without_interpreter) as pool:
        yield pool


@pytest.fixture(scope="module")
def compiled(request, compilers) -> dict[tuple, Future]:
    """Results of ``compile_call``, by the parameters of the module's selected tests."""
    tests = [item for item in request.session.items if item.module is request.module]
    cases = [tuple(item.callspec.params.values()) for item in tests if hasattr(item, "callspec")]
    return {case: compilers.submit(compile_call, *case) for case in cases}


@pytest.fixture(scope="session")
def checked() -> set[str]:
    """The launches, each without what is known of its addresses, that the compiler's front end has seen."""
    return set()


@pytest.fixture(autouse=True)
def launches_compile(monkeypatch, compilers, checked):
    """Put every launch that a test makes under the interpreter through the compiler's front end, too."""
    if not triton.knobs.runtime.interpret:
        yield
        return
    checks, original = [], KERNEL_TYPE.run

    def run(self, *args, grid, warmup, **kwargs):
        launch = described(self, args, kwargs)
        shape = repr(launch._replace(attributes={}))  # which only the later stages read
        if shape not in checked and launch.module.startswith("cmx_fast."):
            checked.add(shape)
            checks.append(compilers.submit(check_front_end, launch))
        return original(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(KERNEL_TYPE, "run", run)
    yield
    for check in checks:
        check.result()


@pytest.fixture(autouse=True)
def maxima_of_a_gpu(monkeypatch):
    """A GPU's maximum and minimum drop a NaN; the interpreter's, NumPy's, keep it and would hide a lost one."""
    builder = triton.runtime.interpreter.InterpreterBuilder
    for name, function in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        monkeypatch.setattr(
            builder, name, lambda self, one, other, function=function: self.binary_op(one, other, function)
        )


@pytest.fixture
def products_as_on_a_gpu(monkeypatch):
    """As on a GPU, where an element is the same sum anywhere in a tile; with the interpreter's BLAS it is not."""
    builder = triton.runtime.interpreter.InterpreterBuilder
    dot = builder.create_dot

    def element_by_element(self, a, b, d, *rest):
        whole = dot(self, a, b, d, *rest)
        whole.data[:] = (a.data[:, None, :] * b.data.T[None]).sum(-1, dtype=d.data.dtype) + d.data
        return whole

    monkeypatch.setattr(builder, "create_dot", element_by_element)


class LaunchCount:
    launches = 0


@pytest.fixture
def count_launches(monkeypatch):
    """A context manager that counts the Triton kernels launched inside it."""

    @contextmanager
    def counting():
        count = LaunchCount()
        original = KERNEL_TYPE.run

        def run(self, *args, **kwargs):
            count.launches += 1
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(KERNEL_TYPE, "run", run)
            yield count

    return counting
