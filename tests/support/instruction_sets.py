"""The instruction sets that ``ATEN_CPU_CAPABILITY`` holds PyTorch's kernels and ours back to."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

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


@functools.cache
def printed_by(program: str, held_back: str | None = None) -> str:
    """The output of a Python program, with all of the processor's instructions or held back to a set."""
    environment = os.environ | ({} if held_back is None else {"ATEN_CPU_CAPABILITY": held_back})
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    ).stdout
