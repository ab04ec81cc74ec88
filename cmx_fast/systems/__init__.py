"""The papers' systems: one module each, with its networks, its losses and its recipe."""
