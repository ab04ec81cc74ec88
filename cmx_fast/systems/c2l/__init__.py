"""C2L: human parsing without masks."""
