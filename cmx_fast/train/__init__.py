"""The engine of training: the session of a command, recipes, the loop and its run folder."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
