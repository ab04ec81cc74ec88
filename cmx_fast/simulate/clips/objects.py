"""Draws the moving objects of simulated clips: shapes, colours and paths."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

#: Radius of the largest object at rest, a share of the frame's shorter side, and the smallest one's, a share of that.
#: An object of radius r covers AREA r², whatever its shape.
LARGEST, SMALLEST = 0.19, 0.1 / 0.19
AREA = 1.68
#: The farthest that any shape reaches from its centre, in radii.
REACH = 1.14
#: The visible radius at the height of a beat, in radii at rest.
GROWTH = 1.14
#: Hues beyond this look like the first ones again.
HUES = 0.82


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.72) - 0.28


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.86


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.5


def _star(x: Array, y: Array) -> Array:
    angle = np.arctan2(x, -y) * 5 / (2 * np.pi)
    point = np.abs(angle - np.round(angle)) * 2  # 0 at a point, 1 between two
    return np.hypot(x, y) - (1 - 0.58 * point)


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(
        np.maximum(np.abs(x) - 1, np.abs(y) - 0.34), np.maximum(np.abs(y) - 1, np.abs(x) - 0.34)
    )


def _bar(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) - 1, np.abs(y) - 0.42)


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 1, 0.86 - np.hypot(x - 0.5, y))


#: Class -> distance to the outline of a shape of radius 1, negative inside, and the area of that shape.
SHAPES: dict[str, tuple[Callable[[Array, Array], Array], float]] = {
    "disc": (_disc, 3.1416),
    "ring": (_ring, 2.5289),
    "square": (_square, 2.9584),
    "triangle": (_triangle, 1.299),
    "star": (_star, 1.6692),
    "cross": (_cross, 2.2576),
    "bar": (_bar, 1.68),
    "crescent": (_crescent, 1.3634),
}


def outline(shape: str, x: Array, y: Array) -> Array:
    """Distance to the outline of a shape scaled to :data:`AREA`, negative inside."""
    distance, area = SHAPES[shape]
    scale = (AREA / area) ** 0.5
    return distance(x / scale, y / scale) * scale


@dataclass(frozen=True)
class MovingObject:
    """An object on a path that bends through the frame.

    Attributes:
        shape: a key of SHAPES.
        hue: in [0, HUES).
        radius: in pixels, at rest.
        centre, swing: (x, y) in pixels; rate: (x, y) turns per second; phase: (x, y) in turns.
        pulse: beats per second, 0 for a silent object; beat: where in a beat the clip begins.
    """

    shape: str
    hue: float
    radius: float
    centre: tuple[float, float]
    swing: tuple[float, float]
    rate: tuple[float, float]
    phase: tuple[float, float]
    pulse: float = 0.0
    beat: float = 0.0

    def position(self, seconds: Array) -> tuple[Array, Array]:
        """The centre's x and y in pixels."""
        x, y = (
            c + s * np.sin(2 * np.pi * (r * seconds + p))
            for c, s, r, p in zip(self.centre, self.swing, self.rate, self.phase, strict=True)
        )
        return x, y

    def strength(self, seconds: Array) -> Array:
        """The loudness of the beat in [0, 1], which also shows; 0.5 for a silent object."""
        if self.pulse == 0:
            return np.full_like(seconds, 0.5)
        return (0.5 + 0.5 * np.cos(2 * np.pi * (self.pulse * seconds + self.beat))) ** 2

    def size(self, seconds: Array) -> Array:
        """The visible radius in pixels."""
        return self.radius * (GROWTH - 0.28 + 0.28 * self.strength(seconds))


def random_object(
    generator: np.random.Generator,
    shape: str,
    width: int,
    height: int,
    *,
    sounding: bool,
    largest: float = LARGEST,
) -> MovingObject:
    """A random object that stays within the frame."""
    radius = generator.uniform(SMALLEST * largest, largest) * min(width, height)
    room = [side / 2 - REACH * GROWTH * radius for side in (width, height)]
    swing = [generator.uniform(0.15, 0.6) * r for r in room]
    centre = [
        side / 2 + generator.uniform(-1, 1) * (r - s)
        for side, r, s in zip((width, height), room, swing, strict=True)
    ]
    return MovingObject(
        shape,
        generator.uniform(0, HUES),
        radius,
        (centre[0], centre[1]),
        (swing[0], swing[1]),
        (generator.uniform(0.1, 0.35), generator.uniform(0.1, 0.35)),
        (generator.uniform(), generator.uniform()),
        pulse=generator.uniform(2, 5) if sounding else 0.0,
        beat=generator.uniform(),
    )


def background(generator: np.random.Generator, width: int, height: int) -> Array:
    """A dim cloudy texture, float64 (height, width, 3) in 0 to 255."""
    texture = np.zeros((height, width))
    for cells in (3, 6, 12):
        coarse = generator.uniform(-1, 1, (cells + 1, cells + 1))
        rows, columns = np.linspace(0, cells, height), np.linspace(0, cells, width)
        i, j = np.minimum(rows.astype(int), cells - 1), np.minimum(columns.astype(int), cells - 1)
        v, u = (rows - i)[:, None], (columns - j)[None]
        texture += (
            coarse[i][:, j] * (1 - v) * (1 - u)
            + coarse[i][:, j + 1] * (1 - v) * u
            + coarse[i + 1][:, j] * v * (1 - u)
            + coarse[i + 1][:, j + 1] * v * u
        ) / cells
    tint = np.array(colorsys.hsv_to_rgb(generator.uniform(), generator.uniform(0, 0.35), 1.0))
    return np.clip(70 + 90 * texture, 20, 140)[..., None] * tint


def draw(frame: Array, thing: MovingObject, second: float) -> None:
    """Paint the object as it is at this second, with soft edges, onto float64 (height, width, 3) in place."""
    now = np.array(second)
    (x, y), radius, strength = thing.position(now), float(thing.size(now)), float(thing.strength(now))
    reach = radius * 1.2 + 1
    top, bottom = max(0, int(y - reach)), min(frame.shape[0], int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(frame.shape[1], int(x + reach) + 2)
    rows, columns = np.mgrid[top:bottom, left:right]
    distance = outline(thing.shape, (columns - x) / radius, (rows - y) / radius) * radius
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    colour = 255 * np.array(colorsys.hsv_to_rgb(thing.hue, 0.85, 0.55 + 0.45 * strength))
    window = frame[top:bottom, left:right]
    window += cover * (colour - window)
