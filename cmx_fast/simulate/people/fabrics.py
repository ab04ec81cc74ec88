"""Surfaces of the simulated people and of their backgrounds: colours and weaves over the whole picture.

The stand-in is an easy data set on purpose: clothes above, clothes below and backgrounds differ in texture and in their
typical colours, around which they vary widely.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = NDArray[np.float64]  # (3,), 0 to 255
Surface = NDArray[np.float64]  # (h, w, 3), 0 to 255
Field = NDArray[np.float64]  # (h, w)


def colour(
    rng: np.random.Generator,
    hue: tuple[float, float] = (0, 1),
    saturation: tuple[float, float] = (0, 0.9),
    value: tuple[float, float] = (0.15, 0.95),
) -> Colour:
    """A colour within ranges of hue, saturation and value, each 0 to 1."""
    hsv = (rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv))


def skin(rng: np.random.Generator) -> Colour:
    return colour(rng, hue=(0.03, 0.08), saturation=(0.35, 0.65), value=(0.45, 0.95))


def _turned(shape: tuple[int, int], angle: float) -> tuple[Field, Field]:
    """Coordinates in pixels along and across a direction."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _mix(first: Colour, second: Colour, share: Field) -> Surface:
    return first + (second - first) * share[..., None]


def _stripes(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Field:
    along, _ = _turned(shape, rng.choice([0.0, np.pi / 2, np.pi / 4]))
    return (along / period % 1 < rng.uniform(0.35, 0.6)).astype(float)


def _checks(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Field:
    along, across = _turned(shape, rng.choice([0.0, np.pi / 4]))
    return ((along / period % 1 < 0.5).astype(float) + (across / period % 1 < 0.5)) / 2


def _dots(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Field:
    along, across = _turned(shape, np.pi / 4)
    inside = np.hypot(along / period % 1 - 0.5, across / period % 1 - 0.5)
    return (inside < rng.uniform(0.25, 0.36)).astype(float)


def _knit(rng: np.random.Generator, shape: tuple[int, int], period: float) -> Field:
    along, across = _turned(shape, 0.0)
    rows = across / period + 0.5 * np.abs(along / period % 1 - 0.5)
    return 0.5 + 0.5 * np.sin(2 * np.pi * rows)


PATTERNS: tuple[Callable[[np.random.Generator, tuple[int, int], float], Field], ...] = (
    _stripes,
    _checks,
    _dots,
    _knit,
)


def warm(rng: np.random.Generator, value: tuple[float, float] = (0.5, 0.95)) -> Colour:
    """A colour of clothes above: reds to yellows."""
    return colour(rng, hue=(-0.06, 0.13), saturation=(0.45, 0.95), value=value)


def dark(rng: np.random.Generator) -> Colour:
    """A colour of clothes below."""
    return colour(rng, saturation=(0, 0.6), value=(0.05, 0.25))


def pale(rng: np.random.Generator) -> Colour:
    """A colour of backgrounds."""
    return colour(rng, saturation=(0, 0.16), value=(0.82, 1))


def patterned(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> Surface:
    """The fabric of tops and dresses: stripes, checks, dots or a knit of two warm colours."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, shape, unit * rng.uniform(0.3, 0.5))
    return _mix(warm(rng), warm(rng, (0.4, 0.8)), pattern)


def woven(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> Surface:
    """The fabric of trousers and skirts: a dark colour with fine ribs along the cloth and broad folds down it."""
    along, across = _turned(shape, rng.normal(0, 0.1))
    ribs = np.sin(2 * np.pi * along / (unit * rng.uniform(0.14, 0.2)))
    folds = np.sin(2 * np.pi * along / (unit * rng.uniform(0.7, 1.2)) + 0.3 * np.sin(across / unit))
    return dark(rng) * (1 + 0.1 * folds + rng.uniform(0.12, 0.25) * ribs)[..., None]


def plain(rng: np.random.Generator, shape: tuple[int, int], base: Colour, grain: float = 2.0) -> Surface:
    """A plain surface, one colour with a little noise: skin, leather, hair."""
    return base + rng.normal(0, grain, (*shape, 1))


def clutter(rng: np.random.Generator, shape: tuple[int, int], unit: float) -> Surface:
    """A wall and a floor with furniture, pictures and foliage, out of focus as behind a person."""
    height, width = shape
    top, bottom = pale(rng), pale(rng)
    fade = np.linspace(0, 1, height)[:, None] * np.ones((1, width))
    surface = _mix(top, (top + bottom) / 2, fade)
    horizon = int(height * rng.uniform(0.62, 0.9))
    surface[horizon:] = _mix(bottom, 0.92 * bottom, fade)[horizon:]
    picture = Image.fromarray(surface.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(8, 18)):
        x, y = rng.uniform(-0.1, 1.1, 2) * (width, height)
        across, down = rng.uniform(0.4, 2.2, 2) * unit
        fill = tuple(int(c) for c in pale(rng))
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle([x - across, y - down, x + across, y + down], fill=fill)
        elif kind == 1:
            draw.ellipse([x - across, y - down, x + across, y + down], fill=fill)
        else:
            corners = rng.uniform(-1, 1, (4, 2)) * (across, down) + (x, y)
            draw.polygon([tuple(corner) for corner in corners], fill=fill)
    blurred = picture.filter(ImageFilter.GaussianBlur(unit * rng.uniform(0.3, 0.6)))
    return np.asarray(blurred, dtype=float)
