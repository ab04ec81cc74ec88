"""Contrastive losses as modules, with the constructors and calls of the packages they stand in for.

``ClipLoss`` and ``SigLipLoss`` are OpenCLIP's, ``SupConLoss`` SupContrast's, ``NTXentLoss`` lightly's and ``InfoNCE``
info-nce-pytorch's; :mod:`cmx_fast.losses.metric_learning` has pytorch-metric-learning's. Their docstrings say where
they differ. ``InfoNCELoss``, ``DenseContrastiveLoss`` and ``MemoryBank`` are this package's own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cmx_fast.losses.clip import ClipLoss
from cmx_fast.losses.dense_contrastive import DenseContrastiveLoss
from cmx_fast.losses.info_nce import InfoNCE, InfoNCELoss
from cmx_fast.losses.ntxent import NTXentLoss
from cmx_fast.losses.siglip import SigLipLoss
from cmx_fast.losses.supcon import SupConLoss

if TYPE_CHECKING:
    from cmx_fast.losses.memory_bank import MemoryBank

__all__ = [
    "ClipLoss",
    "DenseContrastiveLoss",
    "InfoNCE",
    "InfoNCELoss",
    "MemoryBank",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
]


def __getattr__(name: str) -> Any:
    # A method that leaves torch.compile's graphs imports Dynamo, a second that the other losses need not take.
    if name == "MemoryBank":
        return importlib.import_module("cmx_fast.losses.memory_bank").MemoryBank
    raise AttributeError(f"module 'cmx_fast.losses' has no attribute {name!r}")
