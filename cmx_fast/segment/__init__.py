"""Segment pictures of one's own by a trained run: label maps, overlays, a table and a page."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
