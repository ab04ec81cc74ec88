"""The papers' systems: one module each, with its networks, its losses and its recipe."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
