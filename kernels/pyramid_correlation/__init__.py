"""Pyramid correlation on the GPU: ``launchers`` is where to begin."""
