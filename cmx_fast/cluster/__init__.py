"""Clustering on the k-means operators."""

from cmx_fast.cluster.picie import PiCIEClustering

__all__ = ["PiCIEClustering"]
