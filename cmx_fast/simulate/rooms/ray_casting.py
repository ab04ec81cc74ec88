"""First hits and free ways of rays in a furnished shoebox. Vectors are float32 arrays of shape (3, N)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmx_fast.simulate.rooms.geometry import SURFACES, Room

Array = NDArray[np.floating]  # float32 throughout, for speed

TILE = 16  # pixels; a renderer that orders its rays by tiles makes each bundle one tile
BUNDLE = TILE * TILE

# The six surfaces in the order of their numbers: 2 * axis + (0 lower, 1 upper end).
SURFACE_ORDER = tuple(sorted(SURFACES, key=lambda name: 2 * SURFACES[name][0] + SURFACES[name][1]))


@dataclass
class Hits:
    """First hits of N rays: distances (N,), points (3, N) and normals, each as its axis (N,) and sign (N,).

    ``target`` (N,) is the number of the surface, or 6 + the index of the box.
    """

    distance: Array
    point: Array
    target: NDArray[np.int16]
    axis: NDArray[np.int8]
    sign: Array

    def normal(self) -> Array:
        normal = np.zeros_like(self.point)
        normal[self.axis, np.arange(len(self.sign))] = self.sign
        return normal


def dot(first: Array, second: Array) -> Array:
    """Inner product over the first axis, which has length 3; the others broadcast."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _inverse(direction: Array) -> Array:
    return 1 / np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)


class Scene:
    """The room's boxes as arrays. Rays are sorted out in bundles of neighbours before the exact test."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.size = np.array(room.size, dtype=np.float32)
        self.lower = np.array([b.lower for b in room.boxes], dtype=np.float32).reshape(-1, 3)
        self.upper = np.array([b.upper for b in room.boxes], dtype=np.float32).reshape(-1, 3)
        self._centre = ((self.lower + self.upper) / 2).T
        self._radius = np.linalg.norm(self.upper - self.lower, axis=1) / 2

    def _candidates(self, start: Array, end: Array) -> list[NDArray[np.intp]]:
        """For each box the ways from ``start`` to ``end`` (each (3, 1) or (3, N)) that may meet it.

        A bundle of ``BUNDLE`` neighbouring ways lies in a truncated cone about the way between the means of its
        starts and ends. The bundle is kept for a box whose bounding sphere reaches into that cone.
        """
        count = start.shape[1] if end.shape[1] == 1 else end.shape[1]
        if not count:
            return [np.array([], dtype=np.intp)] * len(self.lower)
        padded = np.minimum(np.arange(-(-count // BUNDLE) * BUNDLE), count - 1)

        def mean_and_spread(points: Array) -> tuple[Array, Array]:
            if points.shape[1] == 1:
                return points, np.zeros(1, dtype=np.float32)
            bundles = points[:, padded].reshape(3, -1, BUNDLE)
            mean = bundles.mean(axis=2)
            away = bundles - mean[:, :, None]
            return mean, np.sqrt(dot(away, away).max(axis=1))

        first, first_spread = mean_and_spread(start)
        last, last_spread = mean_and_spread(end)
        axis = last - first
        length = np.sqrt(np.maximum(dot(axis, axis), 1e-12))
        way = self._centre[:, :, None] - first[:, None, :]
        share = np.clip(dot(way, axis[:, None, :]) / length**2, 0, 1)
        aside = way - share * axis[:, None, :]
        spread = first_spread + share * (last_spread - first_spread)
        # the nearest point of a cone lies before or behind the foot of the perpendicular by its slope
        slope = np.minimum(np.abs(last_spread - first_spread) / length, 0.95)
        radius = (self._radius[:, None] + spread) / np.sqrt(1 - slope**2) + np.float32(1e-3)
        touched = (dot(aside, aside) <= radius**2) | (slope >= 0.95)
        inside = np.arange(BUNDLE)
        chosen = []
        for bundles in touched:
            ways = (np.flatnonzero(bundles)[:, None] * BUNDLE + inside).ravel()
            chosen.append(ways[: np.searchsorted(ways, count)])
        return chosen

    def _crossing(self, index: int, origin: Array, inverse: Array) -> tuple[Array, Array, Array]:
        """Distances at which rays enter and leave a box, and the entry per axis (3, N)."""
        near = (self.lower[index][:, None] - origin) * inverse
        far = (self.upper[index][:, None] - origin) * inverse
        entries, exits = np.minimum(near, far), np.maximum(near, far)
        enter = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
        leave = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
        return enter, leave, entries

    def trace(self, origin: Array, direction: Array) -> Hits:
        """First hit of each ray from ``origin`` (3, 1) or (3, N) along unit ``direction`` (3, N)."""
        inverse = _inverse(direction)
        exits = (np.where(direction > 0, self.size[:, None], np.float32(0)) - origin) * inverse
        axis = np.argmin(exits, axis=0).astype(np.int8)
        rays = np.arange(direction.shape[1])
        distance = exits[axis, rays]
        forward = direction[axis, rays] > 0
        hit_target = (2 * axis + forward).astype(np.int16)
        sign = np.where(forward, np.float32(-1), np.float32(1))
        for index, near in enumerate(self._candidates(origin, origin + distance * direction)):
            start = origin if origin.shape[1] == 1 else origin[:, near]
            enter, leave, entries = self._crossing(index, start, inverse[:, near])
            met = (enter > 1e-4) & (enter < leave) & (enter < distance[near])
            hit = near[met]
            distance[hit] = enter[met]
            hit_target[hit] = 6 + index
            axis[hit] = np.argmax(entries[:, met], axis=0)
            sign[hit] = np.where(direction[axis[hit], hit] > 0, np.float32(-1), np.float32(1))
        return Hits(distance, origin + distance * direction, hit_target, axis, sign)

    def is_free(self, point: Array, target: Array) -> NDArray[np.bool_]:
        """Tell where no furniture lies between ``point`` (3, N) and ``target`` (3, 1) or (3, N)."""
        free = np.ones(point.shape[1], dtype=bool)
        way = target - point
        inverse = _inverse(way)
        for index, near in enumerate(self._candidates(point, target)):
            enter, leave, _ = self._crossing(index, point[:, near], inverse[:, near])
            free[near[(leave > np.maximum(enter, np.float32(1e-4))) & (enter < 1)]] = False
        return free
