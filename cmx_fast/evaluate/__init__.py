"""Evaluation: retrieval tables, Grad-CAM, the report, and one command per system."""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
