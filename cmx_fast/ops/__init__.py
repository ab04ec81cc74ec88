"""The operators. One function each; ``impl`` chooses between the kernels and the PyTorch reference."""

from cmx_fast.ops._cache import cache_budget, set_cache_budget
from cmx_fast.ops._implementations import implementations
from cmx_fast.ops.info_nce import info_nce
from cmx_fast.ops.supcon import supcon

__all__ = ["cache_budget", "implementations", "info_nce", "set_cache_budget", "supcon"]
