"""Layers."""

from cmx_fast.nn.sparse_code import SparseCode
from cmx_fast.nn.warp import warp

__all__ = ["SparseCode", "warp"]
