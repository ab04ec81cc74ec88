"""Dressed figures with exact part masks, in ATR's layout."""
