"""Native build of cmx_fast; everything else is in pyproject.toml.

Environment: CMX_NO_EXTENSION=1 (pure Python), FORCE_CUDA (unset: build the .cu files if possible; 0: never;
1: fail if impossible), TORCH_CUDA_ARCH_LIST, MAX_JOBS, DEBUG=1.
"""

import os
import platform
import re
import sys
from pathlib import Path

from setuptools import setup

ABI_TARGET = "0x020b000000000000"  # PyTorch 2.11: the library loads in that version and later ones
DEFAULT_ARCH_LIST = "8.0;9.0;10.0;12.0+PTX"
ROOT = Path(__file__).resolve().parent


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def decide_cuda(cu_files):
    """Whether to build the .cu files, and why. Asks for a toolkit and a CUDA torch, never for a GPU."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    asked = os.environ.get("FORCE_CUDA", "")
    if asked not in ("", "0", "1"):
        sys.exit(f"cmx_fast: FORCE_CUDA={asked!r}; expected 0, 1 or unset")
    if asked == "0":
        return False, "FORCE_CUDA=0"
    missing = [
        what
        for what, there in (
            ("a CUDA build of torch", torch.version.cuda),
            ("a CUDA toolkit (nvcc on PATH or CUDA_HOME)", CUDA_HOME and Path(CUDA_HOME, "bin", "nvcc").exists()),
            (".cu files in csrc/cuda", cu_files),
        )
        if not there
    ]
    if missing and asked == "1":
        sys.exit(f"cmx_fast: FORCE_CUDA=1, but this is missing: {'; '.join(missing)}")
    return not missing, f"missing: {'; '.join(missing)}" if missing else f"toolkit in {CUDA_HOME}"


def native():
    """The two extension modules and the command that builds them incrementally with ninja."""
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension
    except ImportError as error:
        sys.exit(f"cmx_fast: {error}. Install torch, pybind11 and ninja first, then use pip with --no-build-isolation")

    cu_files = sources("csrc/cuda/*.cu")
    cuda, why = decide_cuda(cu_files)
    arch_list = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCH_LIST) if cuda else ""
    debug = os.environ.get("DEBUG", "0") == "1"
    flags = [*(["-O0", "-g"] if debug else ["-O3"]), "-std=c++20", "-fvisibility=hidden"]
    abi = [f"-DTORCH_TARGET_VERSION={ABI_TARGET}", *(["-DUSE_CUDA"] if cuda else [])]
    files = sources("csrc/*.cpp", "csrc/cpu/*.cpp") + (cu_files if cuda else [])
    text = "".join(Path(ROOT, name).read_text() for name in sources("csrc/cpu/*.*", "csrc/common/*.*"))
    isa = sorted(set(re.findall(r"avx\w+|amx\w+|fma", " ".join(re.findall(r'target\("([^"]+)"\)', text)))))
    isa = ["baseline", *(isa if platform.machine() in ("x86_64", "AMD64") else [])]
    information = {
        "CXX_FLAGS": " ".join(flags), "ISA": " ".join(isa), "CUDA": torch.version.cuda if cuda else "",
        "CUDA_ARCH_LIST": arch_list, "TORCH_VERSION": torch.__version__, "TORCH_ABI_TARGET": ABI_TARGET,
    }  # fmt: skip
    print(f"cmx_fast: {len(files)} sources, {' '.join(flags)}, {' '.join(isa)}, torch {torch.__version__}")
    print(f"cmx_fast: CUDA files {f'built for {arch_list}' if cuda else 'not built'} ({why})")

    operators = CppExtension(
        "cmx_fast._C",
        files,
        include_dirs=[str(ROOT / "csrc")] + ([f"{CUDA_HOME}/include"] if cuda else []),
        extra_compile_args={"cxx": flags + abi, "nvcc": ["-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden", *abi]},
        library_dirs=[f"{CUDA_HOME}/lib64"] if cuda else [],
        # The current-stream symbol is weak so that a CPU torch can load the library; it resolves only if libtorch stays
        # a dependency, which a linker that drops unused libraries by default would undo.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", *(["-lcudart_static", "-ldl", "-lrt"] if cuda else [])],
        py_limited_api=True,  # carries one _C to every Python; the wheel stays per version because _host is pybind11
    )
    host = CppExtension("cmx_fast._host", sources("csrc/host/*.cpp"), extra_compile_args={"cxx": flags})
    host.include_dirs, host.libraries = [pybind11.get_include()], []  # no torch in it
    host.define_macros = [(f"CMX_{key}", f'"{value}"') for key, value in information.items()]

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            self.build_temp = str(ROOT / "build" / "temp")  # pip's own is deleted after each install

    return {"ext_modules": [operators, host], "cmdclass": {"build_ext": Build}}


if os.environ.get("CMX_NO_EXTENSION", "0") == "1":
    print("cmx_fast: CMX_NO_EXTENSION=1, installing pure Python")
    setup()
else:
    setup(**native())
