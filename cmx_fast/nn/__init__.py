"""Layers."""

from cmx_fast.nn.filterbank import LogFilterbank
from cmx_fast.nn.power_spectrogram import PowerSpectrogram
from cmx_fast.nn.sparse_code import SparseCode
from cmx_fast.nn.spec_augment import SpecAugment
from cmx_fast.nn.warp import warp

__all__ = ["LogFilterbank", "PowerSpectrogram", "SparseCode", "SpecAugment", "warp"]
