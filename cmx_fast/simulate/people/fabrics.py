"""Surfaces of the simulated people and of their backgrounds: colours and weaves over the whole picture.

Clothes above, clothes below and backgrounds take their colours from one palette: over many pictures a colour tells
nothing about the part that it is of. Within a picture neighbours differ, so that forms can be seen; their textures
differ by kind.
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


#: The least distance of the colours of neighbouring surfaces, in the units of a picture's channels.
APART = 75.0


def shade(rng: np.random.Generator, *others: Colour) -> Colour:
    """A colour of the palette that clothes and backgrounds share, some of skin and hair, apart from ``others``."""
    drawn = [skin(rng) if rng.random() < 0.3 else colour(rng) for _ in range(24)]
    nearest = [min((float(np.linalg.norm(c - other)) for other in others), default=np.inf) for c in drawn]
    return next(
        (c for c, d in zip(drawn, nearest, strict=True) if d >= APART), drawn[int(np.argmax(nearest))]
    )


def patterned(rng: np.random.Generator, shape: tuple[int, int], unit: float, base: Colour) -> Surface:
    """The fabric of tops and dresses: stripes, checks, dots or a knit of a colour and a neighbour of it."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, shape, unit * rng.uniform(0.3, 0.5))
    towards = 255.0 if base.mean() < 127 else 0.0
    return _mix(base, base + rng.uniform(0.25, 0.5) * (towards - base), pattern)


def woven(rng: np.random.Generator, shape: tuple[int, int], unit: float, base: Colour) -> Surface:
    """The fabric of trousers and skirts: a colour with fine ribs along the cloth and broad folds down it."""
    along, across = _turned(shape, rng.normal(0, 0.1))
    ribs = np.sin(2 * np.pi * along / (unit * rng.uniform(0.14, 0.2)))
    folds = np.sin(2 * np.pi * along / (unit * rng.uniform(0.7, 1.2)) + 0.3 * np.sin(across / unit))
    return base * (1 + 0.1 * folds + rng.uniform(0.12, 0.25) * ribs)[..., None]


def plain(rng: np.random.Generator, shape: tuple[int, int], base: Colour, grain: float = 2.0) -> Surface:
    """A plain surface, one colour with a little noise: skin, leather, hair."""
    return base + rng.normal(0, grain, (*shape, 1))


def clutter(rng: np.random.Generator, shape: tuple[int, int], unit: float, base: Colour) -> Surface:
    """A wall and a floor with furniture, pictures and foliage, out of focus as behind a person, around one colour."""

    def near() -> Colour:
        return (base + rng.normal(0, 22, 3)).clip(0, 255)

    height, width = shape
    top, bottom = near(), near()
    fade = np.linspace(0, 1, height)[:, None] * np.ones((1, width))
    surface = _mix(top, (top + bottom) / 2, fade)
    horizon = int(height * rng.uniform(0.62, 0.9))
    surface[horizon:] = _mix(bottom, 0.92 * bottom, fade)[horizon:]
    picture = Image.fromarray(surface.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(8, 18)):
        x, y = rng.uniform(-0.1, 1.1, 2) * (width, height)
        across, down = rng.uniform(0.4, 2.2, 2) * unit
        fill = tuple(int(c) for c in near())
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
