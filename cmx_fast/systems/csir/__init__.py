"""CSIR: image and speech of the same room."""
