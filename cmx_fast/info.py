"""``cmx info``: versions, the native build, operators by device, optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

import cmx_fast

WIDTH = 100
# name shown, module, distributions that carry it, extra that brings it
OPTIONAL = (
    ("DALI", "nvidia.dali", ("nvidia-dali-cuda130",), "dali"),
    ("TorchCodec", "torchcodec", ("torchcodec",), "media"),
    ("PyAV", "av", ("av",), "media"),
    ("faiss", "faiss", ("faiss-gpu", "faiss-cpu"), "cpu or cuda"),
    ("soundfile", "soundfile", ("soundfile",), "media"),
    ("pyroomacoustics", "pyroomacoustics", ("pyroomacoustics",), "simulate"),
    ("espeak-ng", "espeakng_loader", ("espeakng-loader",), "simulate"),
)
# a package's needs from the system, where its own message is a page long
NEEDS = {"TorchCodec": "FFmpeg's shared libraries (libavcodec and its siblings) were not found"}


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return f"{metadata.version(name)} ({name})" if len(distributions) > 1 else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> Iterator[tuple[str, str]]:
    """The names and versions of the package, Python, PyTorch and their devices."""
    import torch

    yield "cmx_fast", cmx_fast.__version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield "torch", f"{torch.__version__} ({cuda}), {torch.get_num_threads()} CPU threads"
    for name in ("torchaudio", "torchvision", "triton", "numpy", "lightning-fabric"):
        yield name, _version(name) or "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "GPUs", ", ".join(devices) or "none found"


def native_build() -> Iterator[tuple[str, str]]:
    """The build of the C++ library: compiler, targets, and those of them that this processor has."""
    if importlib.util.find_spec("cmx_fast._host") is None:
        yield "cmx_fast._C", "not built (pure-Python install): every operator runs its PyTorch reference"
        return
    from cmx_fast import _host
    from cmx_fast.ops._implementations import CUDA_OPERATORS

    build, features = _host.build_info(), _host.cpu_features()
    yield "compiler", f"{build['compiler']} {build['flags']}"
    yield "built against", f"torch {build['torch']}, for torch >= {_abi_version(build['torch_abi_target'])}"
    yield "CPU kernels for", build["isa"]
    yield "this CPU has", " ".join(name for name, there in features.items() if there) or "none of them"
    compiled = f"built for CUDA {build['cuda']}, {build['cuda_arch_list']}" if build["cuda"] else "not built"
    written = ", ".join(CUDA_OPERATORS)
    yield (
        "CUDA C++ kernels",
        f"{written} by impl='cuda': {compiled}; tested in an emulator, never run on a GPU yet",
    )


def _abi_version(target: str) -> str:
    """``0x020b000000000000`` -> ``2.11``: the first two bytes are torch's major and minor version."""
    number = int(target, 16)
    return f"{number >> 56}.{number >> 48 & 0xFF}"


def optional_packages() -> Iterator[tuple[str, str, str]]:
    """Name, state and extra of each optional package; it is imported, since its libraries may be missing."""
    for name, module, distributions, extra in OPTIONAL:
        installed = _version(*distributions)
        if installed is None:
            yield name, "not installed", extra
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # a third-party package may raise anything on import; it is reported
            reason = NEEDS.get(name) or f"{type(error).__name__}: {error}".splitlines()[0]
            yield name, f"{installed}, does not load: {reason}", extra
        else:
            yield name, installed, extra


def gpu_results() -> dict[str, set[str]]:
    """The GPUs on which each operator was measured, from the benchmark results that come with the package."""
    measured: dict[str, set[str]] = {}
    spec = importlib.util.find_spec("cmx_fast.benchmarks")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder, "results").glob("*.json")):
            document = json.loads(file.read_text())
            if gpu := document["machine"].get("gpu"):
                for case in document["cases"].values():
                    measured.setdefault(case["operator"], set()).add(gpu)
    return measured


def operators() -> Iterator[tuple[str, str, str, str]]:
    """Each operator and device, with the implementation that ``impl="auto"`` takes there and the reason."""
    from cmx_fast import ops

    measured = gpu_results()
    for op, devices in ops.implementations().items():
        for device, (chosen, reason) in devices.items():
            if device == "cuda" and chosen != "reference":
                gpus = ", ".join(sorted(measured.get(op, ())))
                reason += (
                    f"; measured on {gpus}" if gpus else "; compiled ahead of time, never run on a GPU yet"
                )
            yield op, device, chosen, reason


def _table(title: str, rows: Iterable[tuple[str, ...]], *header: str) -> Table:
    table = Table(*header, title=title, title_justify="left", width=WIDTH, show_header=bool(header))
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    """Print versions, build, operators and optional packages, at most 100 columns wide."""
    console = Console(width=WIDTH, highlight=False)
    console.print(_table("Versions", versions()))
    console.print(_table("Native build", native_build()))
    console.print(_table("Operators with impl='auto'", operators(), "operator", "device", "takes", "why"))
    console.print(_table("Optional packages", optional_packages(), "package", "found", "extra"))
