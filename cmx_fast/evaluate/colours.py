"""Colours of plots and pages."""

from __future__ import annotations

#: Text; axes and secondary text; lines of tables; the grid of plots.
INK, SOFT, LINE, GRID = "#22292f", "#5c6670", "#e1e5e9", "#e6e9ec"
#: Lines of plots: blue for the system itself, the others for its baselines.
BLUE, ORANGE, GREEN, GREY = "#0b6e99", "#c2571a", "#5a9e6f", "#8a949e"
#: Right and wrong answers.
RIGHT, WRONG = "#1c7c4d", "#b3382c"
