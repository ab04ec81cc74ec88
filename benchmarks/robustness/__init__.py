"""Breaks training runs and files, and looks at what survives."""
