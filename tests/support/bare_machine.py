"""Makes this process one of a machine with torch, triton, NumPy and pytest alone, once it is imported."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys

from cmx_fast._extras import TRAIN

#: Packages that such a machine lacks.
LACKING = {
    *TRAIN, "av", "faiss", "hypothesis", "info_nce", "lightly", "nvidia.dali", "open_clip", "pyroomacoustics",
    "pytest_benchmark", "pytorch_metric_learning", "python_speech_features", "soundfile", "timm", "torchcodec", "xdist",
}  # fmt: skip


def _lacking(name: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in LACKING)


class _Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if _lacking(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


_find_spec = importlib.util.find_spec
sys.meta_path.insert(0, _Nothing())
importlib.util.find_spec = lambda name, package=None: None if _lacking(name) else _find_spec(name, package)
