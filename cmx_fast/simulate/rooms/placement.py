"""Places talkers, microphones and cameras in a simulated space."""

from __future__ import annotations

import numpy as np

from cmx_fast.simulate.rooms.geometry import Room, Vec3
from cmx_fast.simulate.rooms.renderer import Camera


class FreePlaces:
    """Draws places that are off the walls, outside the furniture, and apart from all places drawn before.

    The distance kept from earlier places starts at what ``expected`` places allow and shrinks only as far as
    the room forces it to, so no place comes twice.
    """

    def __init__(self, room: Room, expected: int, rng: np.random.Generator) -> None:
        self._room = room
        self._rng = rng
        self._taken: list[Vec3] = []
        self._apart = 0.5 * float(np.sqrt(room.size[0] * room.size[1] / max(1, expected)))

    def _is_free(self, place: Vec3, margin: float) -> bool:
        return not any(
            all(lo - margin < p < up + margin for lo, p, up in zip(box.lower, place, box.upper, strict=True))
            for box in self._room.boxes
        )

    def draw(
        self,
        heights: tuple[float, float],
        margin: float,
        near: Vec3 | None = None,
        reach: tuple[float, float] = (0.0, np.inf),
    ) -> Vec3:
        """Draw a free place at a height in ``heights``, with ``near`` at a distance within ``reach`` of it (metres)."""
        length, width, height = self._room.size
        wall = min(margin, 0.2 * min(length, width))
        apart = self._apart
        nearest, farthest = reach
        for attempt in range(4000):
            if attempt % 40 == 39:
                apart *= 0.8
                nearest *= 0.9
                farthest *= 1.1
                margin *= 0.9
            place = (
                float(self._rng.uniform(wall, length - wall)),
                float(self._rng.uniform(wall, width - wall)),
                float(min(self._rng.uniform(*heights), 0.85 * height)),
            )
            if not self._is_free(place, margin):
                continue
            if near is not None and not nearest <= np.linalg.norm(np.subtract(place, near)) <= farthest:
                continue
            if all(np.linalg.norm(np.subtract(place, other)) >= apart for other in self._taken):
                self._taken.append(place)
                return place
        raise RuntimeError(f"found no free place in {self._room.name}: its furniture fills it")


def draw_positions(room: Room, count: int, rng: np.random.Generator) -> list[tuple[Vec3, Vec3]]:
    """Draw ``count`` pairs of a talker's mouth and a microphone, no two alike.

    They are 0.8 m apart or more, in large spaces 3 m, and at most 5 m more than that. Closer to a talker in a large
    space the direct sound drowns the room, and there is no decay to measure or to hear.
    """
    nearest = float(np.clip(0.2 * np.cbrt(room.volume), 0.8, 3.0))
    talkers, microphones = FreePlaces(room, count, rng), FreePlaces(room, count, rng)
    pairs = []
    for _ in range(count):
        source = talkers.draw((1.1, 1.75), 0.4)
        reach = (nearest, nearest + 5.0)
        pairs.append((source, microphones.draw((0.9, 1.8), 0.4, near=source, reach=reach)))
    return pairs


def draw_cameras(room: Room, count: int, rng: np.random.Generator) -> list[Camera]:
    """Draw ``count`` viewpoints from the outer part of the space across its middle, no two alike."""
    length, width, height = room.size
    places = FreePlaces(room, count, rng)
    small = min(length, width) < 3.5
    cameras = []
    for _ in range(count):
        for _ in range(60):
            place = places.draw((1.3, min(2.2, 0.75 * height)), 0.35)
            if max(abs(place[0] / length - 0.5), abs(place[1] / width - 0.5)) > 0.22:
                break
        target = (
            float(length * (1 - place[0] / length) * 0.6 + length * rng.uniform(0.1, 0.3)),
            float(width * (1 - place[1] / width) * 0.6 + width * rng.uniform(0.1, 0.3)),
            float(min(height * 0.5, 2.4) * rng.uniform(0.6, 1.1)),
        )
        cameras.append(Camera(place, target, float(rng.uniform(82, 95) if small else rng.uniform(68, 85))))
    return cameras
