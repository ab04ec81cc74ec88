"""Data sets."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
