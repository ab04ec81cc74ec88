"""Compiles every file of csrc/cuda for every architecture and reads the assembler's report: ``make compile-cuda``.

Needs nvcc and PyTorch's headers, no GPU. Prints a row per file and architecture and fails where a kernel spills
registers, which then go through memory.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
ARCHITECTURES = (80, 90, 100, 120)
TARGET = re.search(r'ABI_TARGET = "(\w+)"', (ROOT / "setup.py").read_text()).group(1)
REPORT = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)'"
    r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """The assembler's report on one kernel; sizes in bytes."""

    name: str
    architecture: int
    stack: int
    spilled: int
    registers: int


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def torch_folder() -> Path:
    """Folder of the installed PyTorch, without importing it."""
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def command(source: Path, out: Path) -> list[str]:
    """Compiled as setup.py has it: the host's half once, the assemblers of two chips at a time."""
    chips = [f"-gencode=arch=compute_{chip},code=sm_{chip}" for chip in ARCHITECTURES]
    return [
        str(NVCC), "-std=c++20", "-O3", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA",
        f"-DTORCH_TARGET_VERSION={TARGET}", *chips, "--threads", "2",
        f"-I{ROOT / 'csrc'}", "-isystem", str(torch_folder() / "include"), "-c", str(source), "-o", str(out),
    ]  # fmt: skip


def kernels_in(report: str) -> list[Kernel]:
    return [
        Kernel(name, int(architecture), int(stack), int(stores) + int(loads), int(registers))
        for name, architecture, stack, stores, loads, registers in REPORT.findall(report)
    ]


def compile_one(source: Path, folder: Path) -> tuple[Path, list[Kernel]]:
    """The object file for all architectures and its kernels."""
    out = folder / f"{source.stem}.o"
    done = subprocess.run(command(source, out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name}:\n{done.stdout}{done.stderr}")
    return out, kernels_in(done.stdout + done.stderr)


def compile_all(folder: Path, pool: ThreadPoolExecutor) -> dict[str, Future]:
    """Every file, by its name."""
    return {source.name: pool.submit(compile_one, source, folder) for source in sources()}


def main() -> int:
    if NVCC is None:
        print("compile-cuda: no nvcc on PATH; nothing compiled")
        return 0
    folder = ROOT / "build/cuda"
    folder.mkdir(parents=True, exist_ok=True)
    spilling = []
    print(f"{'file':34} {'chip':>6} {'kernels':>8} {'registers':>10} {'spilled':>8}")
    with ThreadPoolExecutor(2) as pool:
        for name, compiled in compile_all(folder, pool).items():
            _, kernels = compiled.result()
            for chip in ARCHITECTURES:
                here = [kernel for kernel in kernels if kernel.architecture == chip]
                most, spilled = max(k.registers for k in here), sum(k.spilled for k in here)
                print(f"{name:34} {f'sm_{chip}':>6} {len(here):8} {most:10} {spilled:8}", flush=True)
            spilling += [kernel for kernel in kernels if kernel.spilled]
    for kernel in spilling:
        print(f"sm_{kernel.architecture}: {kernel.name} spills {kernel.spilled} bytes", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
