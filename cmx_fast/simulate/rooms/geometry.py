"""The geometry of a simulated space: a shoebox with its surfaces, patches on them, and furniture made of boxes.

Coordinates are metres: x along the length (west 0 to east), y along the width (south 0 to north), z up.
A surface is addressed by two of them: floor and ceiling by (x, y), west and east by (y, z), south and north
by (x, z). An outdoor space is the same shoebox with some surfaces ``open``: they absorb and show the sky.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmx_fast.simulate.rooms.materials import BANDS_HZ, MATERIALS, Material

# name -> (axis of the normal, at the upper end?)
SURFACES = {
    "west": (0, False),
    "east": (0, True),
    "south": (1, False),
    "north": (1, True),
    "floor": (2, False),
    "ceiling": (2, True),
}
WALLS = ("west", "east", "south", "north")
Vec3 = tuple[float, float, float]

_SPEED_OF_SOUND = 343.0
# Air's attenuation of energy in 1/m at 20 degrees C and 50 % humidity, per band.
_AIR_PER_METRE = np.array([0.0001, 0.0003, 0.0006, 0.0010, 0.0019, 0.0058, 0.0203])


@dataclass(frozen=True)
class Patch:
    """A rectangle of another material on a surface (window, door, board, curtain), in surface coordinates."""

    surface: str
    material: str
    lower: tuple[float, float]
    upper: tuple[float, float]

    @property
    def area(self) -> float:
        return (self.upper[0] - self.lower[0]) * (self.upper[1] - self.lower[1])

    def is_near(self, other: Patch, gap: float = 0.0) -> bool:
        """True for two patches of one surface less than ``gap`` metres apart."""
        return self.surface == other.surface and all(
            self.lower[i] < other.upper[i] + gap and self.upper[i] > other.lower[i] - gap for i in (0, 1)
        )


@dataclass(frozen=True)
class Box:
    """A piece of furniture: an axis-parallel box of one material."""

    lower: Vec3
    upper: Vec3
    material: str

    def exposed_area(self) -> float:
        """The area of the top and four sides, in square metres."""
        width, depth, height = (u - lo for lo, u in zip(self.lower, self.upper, strict=True))
        return width * depth + 2 * height * (width + depth)


@dataclass(frozen=True)
class Room:
    """A space. ``tints`` multiplies a material's colour in this room, so that two brick rooms differ a little."""

    name: str
    kind: str
    indoor: bool
    size: Vec3
    surfaces: dict[str, str]
    patches: tuple[Patch, ...] = ()
    boxes: tuple[Box, ...] = ()
    tints: dict[str, Vec3] = field(default_factory=dict)

    @property
    def volume(self) -> float:
        return float(np.prod(self.size))

    def surface_shape(self, surface: str) -> tuple[float, float]:
        """The extent of a surface along its two coordinates."""
        axis, _ = SURFACES[surface]
        first, second = (self.size[i] for i in range(3) if i != axis)
        return first, second

    def material(self, surface: str) -> Material:
        return MATERIALS[self.surfaces[surface]]

    def covered_share(self) -> float:
        """The share of the floor under furniture, 0..1."""
        covered = sum(
            (b.upper[0] - b.lower[0]) * (b.upper[1] - b.lower[1]) for b in self.boxes if b.lower[2] < 0.5
        )
        return min(1.0, covered / (self.size[0] * self.size[1]))


def surface_acoustics(room: Room) -> dict[str, tuple[NDArray[np.float64], float]]:
    """Absorption per band, shape (7,), and scattering of each of the six surfaces as the sound meets them.

    Patches count by their area. The furniture's absorbing area is added to the floor's, because the impulse
    responses are those of an empty shoebox; for the same reason furniture makes every closed surface scatter.
    """
    covered = room.covered_share()
    result = {}
    for surface in SURFACES:
        area = float(np.prod(room.surface_shape(surface)))
        base = room.material(surface)
        parts = [(MATERIALS[p.material], p.area) for p in room.patches if p.surface == surface]
        free = max(0.0, area - sum(a for _, a in parts))
        absorbing = np.array(base.absorption) * free
        scattering = base.scattering * free
        for material, part_area in parts:
            absorbing += np.array(material.absorption) * part_area
            scattering += material.scattering * part_area
        if surface == "floor":
            absorbing *= 1 - covered
            for box in room.boxes:
                absorbing += np.array(MATERIALS[box.material].absorption) * box.exposed_area()
        if base.name != "open":
            scattering += 0.5 * covered * area
        result[surface] = np.clip(absorbing / area, 0.01, 0.99), float(np.clip(scattering / area, 0.2, 0.9))
    return result


def predicted_decay_times(room: Room) -> NDArray[np.float64]:
    """Eyring's reverberation time with air absorption per band of ``BANDS_HZ``, in seconds, shape (7,).

    Only for planning (which rooms, how long a response); labels are measured on the response itself.
    """
    areas = {s: float(np.prod(room.surface_shape(s))) for s in SURFACES}
    total = sum(areas.values())
    per_surface = surface_acoustics(room)
    absorbing = sum((per_surface[s][0] * areas[s] for s in SURFACES), np.zeros(len(BANDS_HZ)))
    exponent = -total * np.log1p(-absorbing / total) + 4 * _AIR_PER_METRE * room.volume
    return 24 * np.log(10) / _SPEED_OF_SOUND * room.volume / exponent
