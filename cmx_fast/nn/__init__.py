"""Layers."""

from cmx_fast.nn.sparse_code import SparseCode

__all__ = ["SparseCode"]
