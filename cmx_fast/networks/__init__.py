"""Encoders and generators that several systems share, and their weights on disk."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
