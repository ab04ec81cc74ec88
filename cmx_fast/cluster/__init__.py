"""Clustering on the k-means operators."""
