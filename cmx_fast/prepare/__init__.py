"""Writes the tables of data sets from files that stay where they are."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
