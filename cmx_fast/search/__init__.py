"""Search among files of one's own by a trained run: embed them once, then find the nearest to a picture or a sound."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
