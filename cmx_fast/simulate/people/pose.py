"""Bodies of the simulated people: proportions, joints and the outlines of their parts.

Lengths are in units of an eighth of the body's height; y points down. "Left" is the person's left, on the right of a
picture, as ATR counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]  # (2,)
Outline = NDArray[np.float64]  # (n, 2)

LEFT, RIGHT = 1, -1
SIDES = (RIGHT, LEFT)


@dataclass(frozen=True)
class Body:
    """The joints of one person. Arms and legs are (shoulder or hip, elbow or knee, wrist or ankle) by side."""

    head: Point  # centre of the skull
    neck: Point
    arms: dict[int, tuple[Point, Point, Point]]
    legs: dict[int, tuple[Point, Point, Point]]
    waist: Point
    build: float  # widths, in multiples of a slim person's


def _from(start: Point, length: float, angle: float) -> Point:
    """The point at this length along an angle from straight down, positive towards the right of the picture."""
    return start + length * np.array([np.sin(angle), np.cos(angle)])


def draw_body(rng: np.random.Generator) -> Body:
    """A random standing or striding body: lean, arms anywhere from hanging to raised, legs together or apart."""
    build = rng.uniform(1.05, 1.5)
    lean = rng.normal(0, 0.05)
    waist = np.array([0.0, 3.95])
    neck = _from(waist, -2.5, lean)
    head = _from(neck, -0.75, lean + rng.normal(0, 0.08))
    arms, legs = {}, {}
    raised = rng.random() < 0.15
    for side in SIDES:
        shoulder = neck + np.array([side * 0.85 * build, 0.28 + rng.normal(0, 0.03)])
        upper = side * (rng.uniform(1.6, 2.7) if raised else rng.uniform(0.08, 0.8))
        elbow = _from(shoulder, 1.3, upper)
        wrist = _from(elbow, 1.2, upper - side * rng.uniform(-0.2, 1.5))
        arms[side] = (shoulder, elbow, wrist)
        hip = waist + np.array([side * 0.42 * build, 0.3])
        thigh = side * rng.uniform(-0.02, 0.3)
        knee = _from(hip, 1.75, thigh)
        ankle = _from(knee, 1.75, thigh - side * rng.uniform(-0.08, 0.3))
        legs[side] = (hip, knee, ankle)
    return Body(head, neck, arms, legs, waist, build)


def limb(points: tuple[Point, ...], widths: tuple[float, ...]) -> list[Outline]:
    """A tapering tube along the points: a quadrilateral per segment and a disc per joint."""
    outlines = [disc(point, width / 2, width / 2) for point, width in zip(points, widths, strict=True)]
    for (a, b), (wide, narrow) in zip(pairwise(points), pairwise(widths), strict=True):
        along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
        across = np.array([-along[1], along[0]])
        outlines.append(
            np.stack(
                [
                    a + across * wide / 2,
                    b + across * narrow / 2,
                    b - across * narrow / 2,
                    a - across * wide / 2,
                ]
            )
        )
    return outlines


def disc(centre: Point, across: float, down: float, begin: float = 0.0, end: float = 2 * np.pi) -> Outline:
    """An ellipse, or the part of it between two angles (clockwise from the right, as the picture shows it)."""
    angle = np.linspace(begin, end, 28)
    return centre + np.stack([across * np.cos(angle), down * np.sin(angle)], axis=1)


def torso(body: Body, hem: float, flare: float = 0.0) -> Outline:
    """The outline from the shoulders over the waist to a hem this far below it, each side wider by ``flare`` there."""
    build = body.build
    right, left = body.arms[RIGHT][0], body.arms[LEFT][0]
    up, bottom = np.array([0, -0.24]), body.waist + np.array([0, hem])
    return np.stack(
        [
            body.neck + np.array([-0.3, -0.12]),
            right + up,
            right + np.array([-0.12 * build, 0.25]),
            body.waist + np.array([-0.72 * build, -0.1]),
            bottom + np.array([-0.82 * build - flare, 0]),
            bottom + np.array([0.82 * build + flare, 0]),
            body.waist + np.array([0.72 * build, -0.1]),
            left + np.array([0.12 * build, 0.25]),
            left + up,
            body.neck + np.array([0.3, -0.12]),
        ]
    )


def part_way(points: tuple[Point, Point, Point], share: float) -> tuple[Point, ...]:
    """The first ``share`` of a limb's length, as the points of a shorter one."""
    first, second = (float(np.linalg.norm(b - a)) for a, b in pairwise(points))
    reach = share * (first + second)
    if reach <= first:
        return points[0], points[0] + (points[1] - points[0]) * reach / first
    return points[0], points[1], points[1] + (points[2] - points[1]) * (reach - first) / second
