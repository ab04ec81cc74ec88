"""Operators called as on a GPU: from the public function through the registered op to its Triton launcher.

Where there is no GPU, the ops' CPU kernels give way to those registered for CUDA, on CPU tensors under the interpreter.
"""

from __future__ import annotations

import pytest
import torch
from device_calls import CALLS, distance, inputs, step
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from cmx_fast.ops import _checks, _implementations

pytest.importorskip("triton")

pytestmark = [
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore:Warning only once for all operators"),
    pytest.mark.skipif(
        not _implementations.HAS_EXTENSION, reason="the C++ extension is not built (CMX_NO_EXTENSION)"
    ),
]

#: At most this, or one and a half times eager's own. The interpreter rounds halves toward zero, a GPU to the nearest.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def registered_for(key: str) -> set[str]:
    """Names of this package's ops that have a kernel there."""
    return {
        name.removeprefix("cmx_fast::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("cmx_fast::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    }


@pytest.fixture
def as_on_a_gpu(device, monkeypatch):
    """Chooses and checks nothing else than on a GPU, and calls the kernels registered for one."""
    if device.type == "cuda":
        yield
        return
    of_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def launcher(op):
        return lambda *args: op.redispatch(of_cuda, *args)

    automatic = _implementations.automatic
    monkeypatch.setattr(
        _implementations, "automatic", lambda op, _, dtype, features: automatic(op, "cuda", dtype, features)
    )
    monkeypatch.setattr(_checks, "readable", lambda tensor: False)
    with torch.library._scoped_library("cmx_fast", "IMPL") as library:
        for name in registered_for("CUDA") & registered_for("CPU"):
            op = getattr(torch.ops.cmx_fast, name).default
            library.impl(name, launcher(op), "CPU", allow_override=True)
        yield


def layout(result: object) -> list[tuple]:
    return [
        (x.dtype, tuple(x.shape), [step for n, step in zip(x.shape, x.stride()) if n > 1 and x.numel()])
        for x in tree_leaves(result)
        if isinstance(x, Tensor)
    ]


class ResultsAsTold(TorchDispatchMode):
    """Fails where an op returns other shapes, strides or dtypes than torch.compile is told of CUDA tensors."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "cmx_fast":
            with FakeTensorMode():
                on_device = tree_map_only(
                    Tensor,
                    lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda"),
                    args,
                )
                described_outputs = function(*on_device, **(kwargs or {}))
            assert layout(result) == layout(described_outputs), f"{function}: not what register_fake says"
            self.seen += 1
        return result


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_results_and_gradients(device, count_launches, monkeypatch, name, dtype):
    tensors = inputs(name, device, dtype)
    with count_launches() as count, ResultsAsTold() as results:
        actual = step(name, tensors)
    assert count.launches and results.seen
    monkeypatch.setattr(_implementations, "automatic", lambda *_: ("reference", "for comparison"))
    eager = step(name, tensors)
    truth = step(name, [x.double() if x.is_floating_point() else x for x in tensors])
    for f, e, t in zip(actual, eager, truth, strict=True):
        assert f.shape == e.shape and f.dtype == e.dtype
        if f.is_floating_point():
            assert distance(f, t) < max(TOLERANCE[dtype], 1.5 * distance(e, t))
        else:
            assert f.equal(t.to(f.dtype))


def test_every_kernel_of_a_gpu_is_called():
    """Else an operator's way to its launcher is left out above."""
    called = set()

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.name().removeprefix("cmx_fast::"))
            return function(*args, **(kwargs or {}))

    with Called():
        for name in CALLS:
            step(name, inputs(name, "cpu"))
    assert registered_for("CUDA") & registered_for("CPU") <= called
