"""The window of a frame that stays in a view."""

from __future__ import annotations


def check_window(window: tuple[float, ...]) -> None:
    """Raise a ValueError unless a window is empty, or left, top, width and height within [0, 1]."""
    if not window:
        return
    if len(window) == 4:
        left, top, width, height = window
        if min(window) >= 0 < min(width, height) and max(left + width, top + height) <= 1 + 1e-6:
            return
    raise ValueError(
        f"window must be left, top, width and height, shares of the frame that stay in it; got {window}"
    )
