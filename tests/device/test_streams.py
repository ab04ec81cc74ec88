"""Operators run on the current stream and on their tensors' device, wherever these are."""

from __future__ import annotations

import pytest
import torch
from device_calls import CALLS, bits, inputs, same_bits, step

#: Clock cycles by which inputs are late: some 30 ms, in which every launch of a step is queued.
LATE = 50_000_000


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_arrive_late_on_another_stream(cuda, name):
    expected = bits(step(name, inputs(name, cuda)))
    host = [x.pin_memory() for x in inputs(name, "cpu")]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LATE)
        found = bits(step(name, [x.to(cuda, non_blocking=True) for x in host]))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_another_device_than_the_current_one(cuda, name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("needs two CUDA devices of one kind: another may round differently")
    other = torch.device("cuda", 1)
    with torch.cuda.device(cuda):
        found = step(name, inputs(name, other))
        assert all(x.device == other for x in found)
        assert same_bits([x.cpu() for x in found], [x.cpu() for x in step(name, inputs(name, cuda))])
        assert torch.cuda.current_device() == 0
