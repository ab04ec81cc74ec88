"""The CUDA C++ files without a GPU: they fit every chip, and register their operators with any PyTorch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cuda_compiler
import pytest
from cuda_compiler import ARCHITECTURES, NVCC, ROOT, TARGET, kernels_in, sources, torch_folder

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
CHECK = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"cmx_fast::{name}", "CUDA"), name
"""
REPORT = """
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    {} bytes stack frame, {} bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Object files and reports, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield cuda_compiler.compile_all(tmp_path_factory.mktemp("objects"), pool)


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [source.name for source in sources()])
def test_no_kernel_spills(compiled, source, architecture):
    _, kernels = compiled[source].result(timeout=1200)
    kernels = [kernel for kernel in kernels if kernel.architecture == architecture]
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled] == []


def test_a_spill_is_read_from_the_report():
    assert [kernel.spilled for kernel in kernels_in(REPORT.format(16, 8))] == [20]
    assert len(kernels_in(2 * REPORT.format(16, 8))) == 2


@needs_nvcc
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_registers_its_operators_where_there_is_no_gpu(compiled, source, tmp_path):
    kernel, _ = compiled[source.name].result(timeout=1200)
    operator = source.stem.removesuffix("_kernel")
    library, torch = tmp_path / "operators.so", torch_folder()
    subprocess.run(
        [
            "g++", "-std=c++20", "-shared", "-fPIC", f"-DTORCH_TARGET_VERSION={TARGET}", f"-I{torch / 'include'}",
            str(ROOT / f"csrc/{operator}.cpp"), str(kernel), "-o", str(library), f"-L{torch / 'lib'}",
            "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", *cudart(),
        ],
        check=True,
    )  # fmt: skip
    names = [line.split('"')[1] for line in source.read_text().splitlines() if "m.impl(" in line]
    assert names
    subprocess.run([sys.executable, "-c", CHECK, library, *names], check=True)
    # Weak, so that a PyTorch without CUDA loads the library; libtorch by name, so that one with CUDA fills it in.
    symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    assert "w aoti_torch_get_current_cuda_stream" in symbols
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "[libtorch.so]" in needed and "libcudart" not in needed and "libtorch_cuda" not in needed


def cudart() -> list[str]:
    """The toolkit's static runtime, found as nvcc finds it."""
    shown = subprocess.run(
        [NVCC, "--dryrun", "-x", "cu", "/dev/null", "-o", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    (line,) = [line for line in shown.splitlines() if "LIBRARIES=" in line]
    return [
        *line.split("LIBRARIES=")[1].replace('"', "").split(),
        "-lcudart_static",
        "-ldl",
        "-lrt",
        "-lpthread",
    ]
