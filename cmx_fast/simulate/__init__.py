"""Small stand-ins for the real data sets, written in their layouts."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
