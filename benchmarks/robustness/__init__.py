"""Breaks training runs and files, and checks what survives."""
