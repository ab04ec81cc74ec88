"""Describes the machine that a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

import cmx_fast
from cmx_fast.ops import implementations

PACKAGES = (
    "triton",
    "open_clip_torch",
    "pytorch-metric-learning",
    "lightly",
    "info-nce-pytorch",
    "scikit-learn",
    "faiss-cpu",
    "faiss-gpu",
    "memeff",
    "inf_cl",
    "cut-cross-entropy",
    "siglip-kernel",
    "flash-kmeans",
    "cuml-cu13",
)
# The instruction sets that bound the speed of a matrix product or an exp.
ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "sve2", "bf16")


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, None where its kernel module does not tell it."""
    try:
        match = re.search(r"Module.*?(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match and match.group(1)


def describe(device: str = "cpu") -> dict[str, Any]:
    """The machine, the versions and the implementations that run, as JSON values."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    model = " ".join(cpu.get(key, "") for key in ("cpu family", "model") if key in cpu)
    about: dict[str, Any] = {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_model": model,
        "isa": [name for name in ISA if name in flags],
        "threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cmx_fast": cmx_fast.__version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "implementations": {op: choice[device][0] for op, choice in implementations().items()},
    }
    if device == "cuda":
        about |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "capability": "sm_{}{}".format(*torch.cuda.get_device_capability()),
            "driver": _driver(),
        }
    # "Intel(R) Xeon(R) Processor" says little; the family and model tell generations apart.
    label = about.get("gpu") or f"{about['cpu']} {model} {about['threads']}t"
    about["name"] = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|processor", "", label.lower())).strip("-")
    return about


def header(about: dict[str, Any]) -> str:
    """Two or three lines that head every table."""
    chip = about.get("gpu") or about["cpu"]
    how = ", ".join(f"{op}: {impl}" for op, impl in about["implementations"].items())
    return "\n".join(
        [
            f"{chip}, {about['threads']} CPU threads, {' '.join(about['isa'])}",
            f"{sys.platform}, Python {about['python']}, torch {about['torch']}, "
            + ", ".join(f"{name} {version}" for name, version in list(about["packages"].items())[:1]),
            f"cmx_fast {about['cmx_fast']} runs {how}",
        ]
    )
