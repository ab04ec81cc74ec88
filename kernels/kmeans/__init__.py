"""K-means on the GPU: ``launchers`` is where to begin."""
