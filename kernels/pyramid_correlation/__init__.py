"""Pyramid correlation on the GPU; begin reading at ``launchers``."""
