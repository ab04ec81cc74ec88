"""Under autocast and under torch.compile an operator computes what it does without."""

from __future__ import annotations

import pytest
import torch
from device_calls import CALLS, distance, inputs, same_bits, step


@pytest.mark.parametrize("name", CALLS)
def test_autocast_rounds_the_inputs_and_nothing_else(device, name):
    """Products inside of an operator stay in float32: autocast must not reach them."""
    call, half = CALLS[name], torch.bfloat16

    def under_autocast(*tensors):
        with torch.autocast(device.type, dtype=half):
            return call.run(*tensors)

    def rounded(*tensors):
        few = range(call.autocasts)
        return call.run(*(x.to(half) if i in few else x for i, x in enumerate(tensors)))

    tensors = inputs(name, device)
    assert same_bits(step(name, tensors, under_autocast), step(name, tensors, rounded))


def test_compiled_whole_agrees_with_eager(cuda, compiled_name):
    tensors = inputs(compiled_name, cuda)
    compiled = torch.compile(CALLS[compiled_name].run, fullgraph=True)
    found, expected = step(compiled_name, tensors, compiled), step(compiled_name, tensors)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        # What surrounds an operator is fused and may round differently.
        assert distance(a, b) < 1e-5


@pytest.fixture(params=list(CALLS))
def compiled_name(request):
    """A call's name; what was compiled before it is forgotten."""
    torch._dynamo.reset()
    return request.param
