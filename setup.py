"""Packages and native build of cmx_fast; everything else is in pyproject.toml.

Environment: CMX_NO_EXTENSION=1 (pure Python), FORCE_CUDA (unset: build the .cu files if possible; 0: never;
1: fail if impossible), TORCH_CUDA_ARCH_LIST, MAX_JOBS, DEBUG=1.
"""

import os
import platform
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ABI_TARGET = "0x020b000000000000"  # PyTorch 2.11: the library loads in that version and later ones
DEFAULT_ARCH_LIST = "8.0;9.0;10.0;12.0+PTX"
# Linkers drop an unused libtorch, and with it goes the current-stream symbol, weak for a CPU torch's sake.
CUDA_LINK = ["-Wl,--no-as-needed", "-ltorch", "-lcudart_static", "-ldl", "-lrt"]
ROOT = Path(__file__).resolve().parent
# kernels/ and benchmarks/ lie at the root, where discovery would miss them silently.
FOLDERS = {"cmx_fast": "cmx_fast", "cmx_fast.benchmarks": "benchmarks", "cmx_fast.kernels": "kernels"}


def packages():
    """Every package in FOLDERS."""
    return [
        name
        for package, folder in FOLDERS.items()
        for name in (package, *(f"{package}.{inner}" for inner in find_packages(str(ROOT / folder))))
    ]


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def decide_cuda(cu_files, torch_cuda, toolkit):
    """Whether to build the .cu files, and why. Asks for a toolkit and a CUDA torch, never for a GPU."""
    asked = os.environ.get("FORCE_CUDA", "")
    if asked not in ("", "0", "1"):
        sys.exit(f"cmx_fast: FORCE_CUDA={asked!r}; expected 0, 1 or unset")
    if asked == "0":
        return False, "FORCE_CUDA=0"
    needed = {
        "a CUDA build of torch": torch_cuda,
        "a CUDA toolkit (nvcc on PATH or CUDA_HOME)": toolkit and Path(toolkit, "bin", "nvcc").exists(),
        ".cu files in csrc/cuda": cu_files,
    }
    missing = "; ".join(what for what, there in needed.items() if not there)
    if missing and asked == "1":
        sys.exit(f"cmx_fast: FORCE_CUDA=1, but this is missing: {missing}")
    return not missing, f"missing: {missing}" if missing else f"toolkit in {toolkit}"


def instruction_sets():
    """What the CPU kernels are compiled for: the targets that their sources name, chosen from at run time."""
    files = sources("csrc/cpu/**/*.*", "csrc/common/*.*") if platform.machine() in ("x86_64", "AMD64") else []
    targets = re.findall(r'target\("([^"]+)"\)', "".join(Path(ROOT, name).read_text() for name in files))
    return ["baseline", *sorted({name for target in targets for name in target.split(",")})]


def native():
    """The two extension modules, for every Python from 3.10 on, and the command that builds them with ninja."""
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension
    except ImportError as error:
        sys.exit(f"cmx_fast: {error}; without pip's build isolation install torch and ninja first")

    cu_files = sources("csrc/cuda/*.cu")
    cuda, why = decide_cuda(cu_files, torch.version.cuda, CUDA_HOME)
    arch_list = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCH_LIST) if cuda else ""
    debug = os.environ.get("DEBUG", "0") == "1"
    optimise = ["-O0", "-g"] if debug else ["-O3"]
    # Python's own flags ask for debug information: a quarter of the build's time, and most of the library's size.
    lean = [] if debug or "-g" in os.environ.get("CFLAGS", "") else ["-g0"]
    cxx = [*optimise, *lean, "-std=c++20", "-fvisibility=hidden"]
    nvcc = [*optimise, "-std=c++20", "-Xcompiler=-fvisibility=hidden"]
    abi = [f"-DTORCH_TARGET_VERSION={ABI_TARGET}", *(["-DUSE_CUDA"] if cuda else [])]
    files = sources("csrc/*.cpp", "csrc/cpu/**/*.cpp") + (cu_files if cuda else [])
    isa = " ".join(instruction_sets())
    print(f"cmx_fast: {len(files)} sources, {' '.join(cxx)}, {isa}, torch {torch.__version__}")
    print(f"cmx_fast: CUDA files {f'built for {arch_list}' if cuda else 'not built'} ({why})")

    operators = CppExtension(
        "cmx_fast._C",
        files,
        include_dirs=[str(ROOT / "csrc"), *([f"{CUDA_HOME}/include"] if cuda else [])],
        extra_compile_args={"cxx": cxx + abi, "nvcc": nvcc + abi},
        library_dirs=[f"{home}/lib64" for home in (CUDA_HOME, "/usr/local/cuda")] if cuda else [],
        extra_link_args=CUDA_LINK if cuda else [],
        py_limited_api=True,
    )
    host = CppExtension(
        "cmx_fast._host", sources("csrc/host/*.cpp"), extra_compile_args={"cxx": cxx}, py_limited_api=True
    )
    host.include_dirs, host.libraries = [], []  # loads where torch does not
    facts = {"CXX_FLAGS": " ".join(cxx), "ISA": isa, "CUDA": torch.version.cuda if cuda else ""}
    facts |= {"CUDA_ARCH_LIST": arch_list, "TORCH_VERSION": torch.__version__, "TORCH_ABI_TARGET": ABI_TARGET}
    host.define_macros = [(f"CMX_{name}", f'"{value}"') for name, value in facts.items()]

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            self.build_temp = str(ROOT / "build" / "temp")  # kept, unlike pip's own: rebuilds are incremental

    wheel = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return {"ext_modules": [operators, host], "cmdclass": {"build_ext": Build}, "options": wheel}


if os.environ.get("CMX_NO_EXTENSION", "0") == "1":
    print("cmx_fast: CMX_NO_EXTENSION=1, installing pure Python")
    setup(packages=packages(), package_dir=FOLDERS)
else:
    setup(packages=packages(), package_dir=FOLDERS, **native())
