"""Clusters vectors and feature maps on the k-means operators."""

from cmx_fast.cluster.kmeans import EmptyClusterWarning, KMeans
from cmx_fast.cluster.minibatch import MiniBatchKMeans
from cmx_fast.cluster.picie import PiCIEClustering

__all__ = ["EmptyClusterWarning", "KMeans", "MiniBatchKMeans", "PiCIEClustering"]
