"""Contrastive losses as modules, with the constructors and calls of the packages they stand in for."""

from cmx_fast.losses.clip import ClipLoss
from cmx_fast.losses.info_nce import InfoNCELoss
from cmx_fast.losses.memory_bank import MemoryBank
from cmx_fast.losses.ntxent import NTXentLoss
from cmx_fast.losses.supcon import SupConLoss

__all__ = ["ClipLoss", "InfoNCELoss", "MemoryBank", "NTXentLoss", "SupConLoss"]
