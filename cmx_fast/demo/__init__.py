"""A local web page that tries a trained run on files dropped into it."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
