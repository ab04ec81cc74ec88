"""Measures the peak extra memory of one step: the process's memory at its highest, less the memory before.

On a CPU it is the kernel's count of resident pages, which includes memory that C++ takes for itself, in a fresh
process, so that nothing freed earlier is silently used again. On a GPU it is the caching allocator's peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .case import Case
from .registry import CASES

MB = 10**6


class MemoryMeterError(RuntimeError):
    """This system doesn't tell the peak, or the measured process failed."""


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise MemoryMeterError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def extra_peak(step: Callable[[], object]) -> int:
    """The bytes by which ``step`` raises the resident memory of this process at its peak (Linux).

    The step's results and gradients are alive at the peak and count.
    """
    try:
        # Free heap pages are given back first: reused ones would not count.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
    except (OSError, AttributeError) as error:
        raise MemoryMeterError(f"the peak of resident memory can't be reset here ({error})") from error
    before = _status("VmRSS")
    result = step()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def cuda_extra_peak(step: Callable[[], object]) -> int:
    """The bytes by which ``step`` raises torch's allocated memory on the current GPU, at its peak."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def release(device: str) -> None:
    """Free the memory that nothing refers to any more, so that the next contender has it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def in_fresh_process(case: Case, provider: str, threads: int, *, timeout: float = 300) -> int:
    """:func:`extra_peak` of a provider's step, measured in a process of its own."""
    command = [
        sys.executable,
        "-m",
        f"{__package__}.memory",
        case.name,
        str(case.rows),
        provider,
        str(threads),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=True
        )
    except subprocess.CalledProcessError as error:
        raise MemoryMeterError(f"{provider}: {(error.stderr or '').strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise MemoryMeterError(f"{provider}: more than {timeout:.0f} s") from error
    return json.loads(done.stdout.splitlines()[-1])


def main(case_name: str, rows: str, provider: str, threads: str) -> None:
    """The measuring process: prints the bytes."""
    torch.set_num_threads(int(threads))
    case = next(case for case in CASES if case.name == case_name).resized(int(rows))
    contender = case.contenders()[provider]
    # Loads code and starts threads. A compiled one compiles at full size: that takes memory of its own.
    rehearsal = case if contender.compiled else case.resized(64)
    contender.step(rehearsal.problem(contender))()
    step = contender.step(case.problem(contender))
    print(json.dumps(extra_peak(step)))


if __name__ == "__main__":
    main(*sys.argv[1:])
