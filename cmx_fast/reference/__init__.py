"""Every operator in plain PyTorch, with the public signature less ``impl``: oracle, baseline and fallback."""

from cmx_fast.reference.info_nce import info_nce, reduce_loss
from cmx_fast.reference.supcon import supcon

__all__ = ["info_nce", "reduce_loss", "supcon"]
