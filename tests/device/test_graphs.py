"""A step captured in a CUDA graph gives the bits of an eager one, and follows its inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from device_calls import CALLS, bits, inputs, same_bits, step
from torch import Tensor


def capture(run: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """The graph of one run, and its results, which a replay overwrites. Compiled before, on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_replays_give_eagers_bits_for_any_inputs(cuda, name, dtype):
    kept = inputs(name, cuda, dtype)
    graph, results = capture(lambda: step(name, kept))
    for seed in (0, 1, 1):
        fresh = inputs(name, cuda, dtype, seed)
        for old, new in zip(kept, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        replayed = bits(results)
        expected = bits(step(name, fresh))
        assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True)), f"seed {seed}"


@pytest.mark.parametrize("name", CALLS)
def test_two_seeds_differ(device, name):
    """Else the replays above would prove nothing."""
    assert not same_bits(step(name, inputs(name, device)), step(name, inputs(name, device, seed=1)))
