"""The instruction sets that ``ATEN_CPU_CAPABILITY`` holds PyTorch's kernels and ours back to."""

from __future__ import annotations

import pytest
import torch

_PYTORCHS = ("default", "avx2", "avx512")
_OWN = torch.backends.cpu.get_cpu_capability().lower()


def held_back_to(*names: str):
    """Parameters for a test. PyTorch takes a set that the processor lacks, too, and dies of it: that one is skipped."""
    lacking = _PYTORCHS[_PYTORCHS.index(_OWN) + 1 :] if _OWN in _PYTORCHS else ()
    return [
        pytest.param(name, marks=pytest.mark.skipif(name in lacking, reason=f"this processor has no {name}"))
        for name in names
    ]
