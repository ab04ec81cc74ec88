"""Installed packages with a loss of their own, each imported where it is used."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

EXTRA = "pip install 'cmx-fast[bench]'"


class MissingPeerError(ImportError):
    """A package to compare with is not installed."""


def load(module: str) -> ModuleType:
    """Import a peer, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"{module} is not installed ({error}); {EXTRA}") from error


def open_clip_loss() -> nn.Module:
    """OpenCLIP's ``ClipLoss``, from its file alone: the package imports every vision model."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise MissingPeerError(f"open_clip is not installed; {EXTRA}")
    alone = importlib.util.spec_from_file_location("open_clip_loss", Path(spec.origin).with_name("loss.py"))
    if alone is None or alone.loader is None:
        raise MissingPeerError(f"open_clip has no loss.py; {EXTRA}")
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module.ClipLoss()


def metric_learning_supcon(temperature: float) -> nn.Module:
    """pytorch-metric-learning's ``SupConLoss``."""
    return load("pytorch_metric_learning.losses").SupConLoss(temperature=temperature)


def lightly_ntxent(temperature: float, bank: Tensor | None = None) -> nn.Module:
    """lightly's ``NTXentLoss``, its memory bank (K, D) filled with a copy of these rows."""
    size = 0 if bank is None else tuple(bank.shape)
    loss = load("lightly.loss.ntx_ent_loss").NTXentLoss(temperature=temperature, memory_bank_size=size)
    if bank is not None:
        loss.memory_bank.bank = bank.clone()
    return loss


def info_nce_pytorch(temperature: float) -> nn.Module:
    """info-nce-pytorch's ``InfoNCE`` with one set of negatives for all queries."""
    return load("info_nce").InfoNCE(temperature=temperature, negative_mode="unpaired")
