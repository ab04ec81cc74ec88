"""Show where a trained run's similarity of a picture and a sound comes from."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
