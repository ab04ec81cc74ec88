"""A call that cannot allocate says so, wherever it stands then, and leaves nothing behind."""

from __future__ import annotations

import gc

import pytest
import torch
from device_calls import CALLS, inputs, same_bits, step

LARGEST, SMALLEST = 2**28, 512  # bytes; the allocator hands out no less
TRIES = 60


@pytest.fixture
def no_more_memory(cuda):
    """A function that takes what the process holds unused, so that the next allocation fails; it returns the blocks."""

    def take() -> list[torch.Tensor]:
        total = torch.cuda.get_device_properties(cuda).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(cuda) / total)
        taken, size = [], LARGEST
        while size >= SMALLEST:
            try:
                taken.append(torch.empty(size, dtype=torch.uint8, device=cuda))
            except torch.OutOfMemoryError:
                size //= 2
        return taken

    torch.cuda.empty_cache()
    yield take
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", CALLS)
def test_out_of_memory_is_said_and_leaves_later_results_right(cuda, name, no_more_memory):
    tensors = inputs(name, cuda)
    expected = [x.clone() for x in step(name, tensors)]
    torch.cuda.empty_cache()
    taken = no_more_memory()
    failures, give = 0, 1
    # The last taken are the smallest: with each failure some more are given back, and a call comes further.
    for _ in range(TRIES):
        try:
            found = step(name, tensors)
            break
        except torch.OutOfMemoryError:
            failures += 1
        gc.collect()  # the failed call's frames hold tensors
        del taken[-give:]
        give = min(2 * give, max(1, len(taken)))
    else:
        pytest.fail(f"still out of memory after {failures} tries")
    assert failures > 0, "the limit did not bite"
    assert same_bits(found, expected)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert same_bits(step(name, tensors), expected)
