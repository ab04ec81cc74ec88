"""The suite for a GPU: ``python -m benchmarks.device``."""
