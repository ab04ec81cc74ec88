"""CMAC: video and sound."""
