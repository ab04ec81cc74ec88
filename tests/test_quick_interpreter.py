"""The parts of Triton's interpreter that tests/support/quick_interpreter.py replaces give what Triton's own give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import triton.language as tl
from quick_interpreter import quicken
from triton.runtime import interpreter


@pytest.fixture(scope="module", autouse=True)
def quick():
    """As in tests/kernels; it stays so for the process."""
    quicken()


def test_every_bfloat16_is_widened_and_narrowed():
    bits = np.arange(2**16, dtype=np.uint16)
    wide = interpreter._convert_float(bits, tl.bfloat16, tl.float32, None)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
    np.testing.assert_array_equal(wide, expected.view(torch.int32).numpy().view(np.uint32))
    for lower in (0, 0xFFFF):
        values = (wide | np.uint32(lower)).view(np.float32)
        np.testing.assert_array_equal(interpreter._convert_float(values, tl.float32, tl.bfloat16, None), bits)


def test_types_are_told_apart():
    kinds = [
        tl.block_type(element, shape)
        for element in (tl.float32, tl.int32, tl.pointer_type(tl.float32), tl.pointer_type(tl.float32, 3))
        for shape in ([4], [4, 1], [tl.constexpr(8), 2])
        for _ in range(2)
    ]
    for number, kind in enumerate(kinds):
        assert [kind == other for other in kinds] == [number // 2 == n // 2 for n in range(len(kinds))]
    made = tl.tensor(None, kinds[-1])
    assert [size.value for size in made.shape] == [8, 2] and made.numel.value == kinds[-1].numel == 16
    assert tl.tensor(None, tl.int32).numel.value == 1 and len(tl.tensor(None, tl.int32).shape) == 0
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [3])
