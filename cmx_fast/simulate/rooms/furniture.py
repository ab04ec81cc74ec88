"""Makes furniture of boxes and places it on a floor plan without overlaps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cmx_fast.simulate.rooms.geometry import WALLS, Box, Vec3

# A piece of furniture in its own frame: boxes ((x0, y0, z0), (x1, y1, z1), material), its back along y = 0.
Piece = list[tuple[Vec3, Vec3, str]]


def table(width: float, depth: float, height: float = 0.75, material: str = "furniture wood") -> Piece:
    leg = 0.06
    corners = [(x, y) for x in (0.0, width - leg) for y in (0.0, depth - leg)]
    legs: Piece = [((x, y, 0.0), (x + leg, y + leg, height - 0.05), material) for x, y in corners]
    return [((0.0, 0.0, height - 0.05), (width, depth, height), material), *legs]


def chair(material: str = "furniture wood") -> Piece:
    return [((0.0, 0.0, 0.0), (0.45, 0.45, 0.45), material), ((0.0, 0.0, 0.45), (0.45, 0.08, 0.95), material)]


def sofa(width: float, material: str = "upholstery") -> Piece:
    return [
        ((0.0, 0.0, 0.0), (width, 0.9, 0.42), material),
        ((0.0, 0.0, 0.42), (width, 0.25, 0.85), material),
        ((0.0, 0.25, 0.42), (0.2, 0.9, 0.62), material),
        ((width - 0.2, 0.25, 0.42), (width, 0.9, 0.62), material),
    ]


def bed(width: float) -> Piece:
    return [
        ((0.0, 0.1, 0.0), (width, 2.1, 0.3), "furniture wood"),
        ((0.02, 0.12, 0.3), (width - 0.02, 2.08, 0.55), "bedding"),
        ((0.0, 0.0, 0.0), (width, 0.1, 1.0), "furniture wood"),
    ]


def block(width: float, depth: float, height: float, material: str) -> Piece:
    return [((0.0, 0.0, 0.0), (width, depth, height), material)]


def car(parked: str = "across") -> Piece:
    """A car, its length away from the wall (``across``) or along it (``alongside``)."""
    boxes: Piece = [
        ((0.0, 0.0, 0.28), (1.8, 4.2, 0.80), "car paint"),
        ((0.12, 0.9, 0.80), (1.68, 3.3, 1.35), "car window"),
        ((0.12, 0.9, 1.35), (1.68, 3.3, 1.42), "car paint"),
        *(((x, y, 0.0), (x + 0.25, y + 0.65, 0.6), "board") for x in (-0.01, 1.56) for y in (0.45, 3.05)),
    ]
    if parked == "across":
        return boxes
    return [((a[1], a[0], a[2]), (b[1], b[0], b[2]), material) for a, b, material in boxes]


def tree(height: float, crown: float) -> Piece:
    trunk = crown / 2 - 0.15
    low = height * 0.4
    return [
        ((trunk, trunk, 0.0), (trunk + 0.3, trunk + 0.3, low), "bark"),
        ((0.0, 0.0, low), (crown, crown, height * 0.8), "hedge"),
        ((crown * 0.2, crown * 0.2, height * 0.8), (crown * 0.8, crown * 0.8, height), "hedge"),
    ]


class FloorPlan:
    """Places pieces in a room of ``size`` and collects their boxes; a piece that does not fit is left out."""

    def __init__(self, size: Vec3, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.boxes: list[Box] = []
        self._footprints: list[tuple[float, float, float, float]] = []

    def _is_free(self, x0: float, y0: float, x1: float, y1: float, gap: float) -> bool:
        if x0 < 0 or y0 < 0 or x1 > self.size[0] or y1 > self.size[1]:
            return False
        return all(
            x1 + gap <= a or x0 - gap >= c or y1 + gap <= b or y0 - gap >= d
            for a, b, c, d in self._footprints
        )

    def _put(self, piece: Piece, x0: float, y0: float, wall: str, width: float, depth: float) -> None:
        """Turn the piece so that its back faces ``wall`` and move it to (x0, y0)."""

        def turn(x: float, y: float) -> tuple[float, float]:
            turned = {
                "south": (x, y),
                "north": (width - x, depth - y),
                "west": (y, width - x),
                "east": (depth - y, x),
            }
            return turned[wall]

        spans = (width, depth) if wall in ("south", "north") else (depth, width)
        for lower, upper, material in piece:
            (ax, ay), (bx, by) = turn(lower[0], lower[1]), turn(upper[0], upper[1])
            self.boxes.append(
                Box(
                    (x0 + min(ax, bx), y0 + min(ay, by), lower[2]),
                    (x0 + max(ax, bx), y0 + max(ay, by), min(upper[2], self.size[2])),
                    material,
                )
            )
        self._footprints.append((x0, y0, x0 + spans[0], y0 + spans[1]))

    @staticmethod
    def _extent(piece: Piece) -> tuple[float, float]:
        return max(upper[0] for _, upper, _ in piece), max(upper[1] for _, upper, _ in piece)

    def against_wall(self, piece: Piece, walls: Iterable[str] = WALLS) -> bool:
        """Place a piece, its back to one of ``walls``; False where 40 tries find no free place."""
        width, depth = self._extent(piece)
        choices = list(walls)
        for _ in range(40):
            wall = choices[self.rng.integers(len(choices))]
            along_x = wall in ("south", "north")
            room_along = self.size[0] if along_x else self.size[1]
            if width > room_along:
                continue
            at = self.rng.uniform(0, room_along - width)
            if along_x:
                x0, y0 = at, 0.0 if wall == "south" else self.size[1] - depth
                free = self._is_free(x0, y0, x0 + width, y0 + depth, 0.05)
            else:
                x0, y0 = (0.0 if wall == "west" else self.size[0] - depth), at
                free = self._is_free(x0, y0, x0 + depth, y0 + width, 0.05)
            if free:
                self._put(piece, x0, y0, wall, width, depth)
                return True
        return False

    def at(self, piece: Piece, x0: float, y0: float, back: str = "south") -> bool:
        """Place a piece at a given corner, if it is free."""
        width, depth = self._extent(piece)
        dx, dy = (width, depth) if back in ("south", "north") else (depth, width)
        if not self._is_free(x0, y0, x0 + dx, y0 + dy, 0.0):
            return False
        self._put(piece, x0, y0, back, width, depth)
        return True

    def anywhere(self, piece: Piece, gap: float = 0.5) -> bool:
        """Place a piece off the walls, turned at random."""
        width, depth = self._extent(piece)
        for _ in range(40):
            back = WALLS[self.rng.integers(4)]
            dx, dy = (width, depth) if back in ("south", "north") else (depth, width)
            if dx + 2 * gap > self.size[0] or dy + 2 * gap > self.size[1]:
                continue
            x0 = self.rng.uniform(gap, self.size[0] - gap - dx)
            y0 = self.rng.uniform(gap, self.size[1] - gap - dy)
            if self._is_free(x0, y0, x0 + dx, y0 + dy, gap):
                self._put(piece, x0, y0, back, width, depth)
                return True
        return False

    def rows(
        self, material: str, height: float, depth: float, *, pitch: float, aisle: float, front: float
    ) -> None:
        """Place rows of seats, pews or desks across the width, an aisle in the middle, ``front`` metres left free."""
        half = (self.size[1] - aisle) / 2 - 0.6
        x0 = front
        while half > 0.5 and x0 + pitch < self.size[0] - 0.6:
            for y0 in (0.6, 0.6 + half + aisle):
                seats: Piece = [
                    ((0.0, 0.0, 0.0), (half, depth, height * 0.55), material),
                    ((0.0, depth - 0.1, height * 0.55), (half, depth, height), material),
                ]
                self.at(seats, x0, y0, "west")
            x0 += pitch
