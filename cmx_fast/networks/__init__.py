"""Encoders and generators that several systems share, and their weights on disk."""
