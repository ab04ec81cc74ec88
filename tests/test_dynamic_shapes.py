"""One graph for every batch size: torch.export and torch.compile of every operator, loss and layer."""

from __future__ import annotations

import pytest
import torch
from sized import Function
from sized_calls import CALLS
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.utils import _pytree as pytree

#: Sizes of no other dimension: those that are equal once are taken for one by PyTorch. The extents are a multiple of 4
#: apart, since PyTorch's pooling asks whether a size is even, and batches from 16 on, since its convolution asks that.
EXTENT, OTHER_EXTENT = 13, 21
BATCHES = (19, *range(20, 30), 16)


def tensors(results):
    return [x for x in pytree.tree_leaves(results) if isinstance(x, Tensor)]


def sizes_that_differ(one, other):
    """Of each input the dimensions that go with the batch or the extent, as torch.export takes them."""
    return tuple(
        {i: Dim.DYNAMIC for i, sides in enumerate(zip(x.shape, y.shape, strict=True)) if sides[0] != sides[1]}
        if isinstance(x, Tensor)
        else None
        for x, y in zip(one, other, strict=True)
    )


def run(module, inputs):
    torch.manual_seed(1)
    return tensors(module(*inputs))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CALLS)
def test_the_exported_program_takes_any_batch_and_extent(name):
    call = CALLS[name]
    module = call.build()
    inputs, others = call.inputs(17, EXTENT), call.inputs(19, OTHER_EXTENT)
    dynamic = sizes_that_differ(inputs, others)
    assert any(dynamic)
    shapes = {"inputs": dynamic} if isinstance(module, Function) else dynamic
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
        for found, right in zip(run(program, others), run(module, others), strict=True):
            torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", CALLS)
def test_a_dozen_batch_sizes_are_one_graph(name):
    call = CALLS[name]
    module = call.build()
    counter = CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in BATCHES:
            run(compiled, call.inputs(batch, EXTENT))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["attention", "LogMel", "InfoNCELoss", "CBAM"])
def test_sizes_become_dynamic_by_themselves(name):
    """The first size has a graph of its own, all others share the second."""
    call = CALLS[name]
    counter = CompileCounter()
    compiled = torch.compile(call.build(), backend=counter, fullgraph=True)
    for batch in BATCHES:
        run(compiled, call.inputs(batch, EXTENT))
    assert counter.frame_count == 2
