"""Benchmarks of the operators against the formulas and packages that their users run today.

``cmx bench`` measures and writes ``benchmarks/results/<machine>.json`` with a table and a plot; ``pytest benchmarks/``
measures small cases under pytest-benchmark; ``python -m benchmarks.device`` is the suite for a GPU;
``cmx bench data DIR`` loads your own media files beside plain loops.
"""

from cmx_fast._extras import TRAIN, require_all

require_all(TRAIN, "train")
