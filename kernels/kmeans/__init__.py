"""K-means on the GPU; begin reading at ``launchers``."""
