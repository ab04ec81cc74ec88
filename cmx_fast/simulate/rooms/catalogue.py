"""Draws spaces of every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cmx_fast.simulate.rooms.furniture import FloorPlan
from cmx_fast.simulate.rooms.geometry import WALLS, Patch, Room, Vec3, predicted_decay_times
from cmx_fast.simulate.rooms.kinds import INDOOR, OUTDOOR, Kind

_INDOOR_DECAY_SECONDS = (
    0.15,
    2.4,
)  # Eyring, mean of 500 Hz and 1 kHz; a hall beyond it needs over 3 s of response
_OUTDOOR_EVERY = 6  # 1 in 6: 4 of 24, so that the outdoor columns of the table are more than one space
_DRAWS = 32


class _WallPlan:
    """Puts patches on walls without overlaps; a patch without a place after 20 tries is left out."""

    def __init__(self, size: Vec3, rng: np.random.Generator) -> None:
        self.patches: list[Patch] = []
        self._size = size
        self._rng = rng

    def put(self, walls: list[str], material: str, width: float, bottom: float, top: float) -> None:
        """Put a patch of ``width`` from ``bottom`` to ``top`` somewhere on one of ``walls``."""
        wall = walls[self._rng.integers(len(walls))]
        extent = self._size[1] if wall in ("west", "east") else self._size[0]
        top = min(top, self._size[2] - 0.1)
        if width > extent - 0.3 or top <= bottom:
            return
        for _ in range(20):
            at = float(self._rng.uniform(0.15, extent - width - 0.15))
            patch = Patch(wall, material, (at, bottom), (at + width, top))
            if not any(patch.is_near(other, gap=0.1) for other in self.patches):
                self.patches.append(patch)
                return


def _draw_patches(kind: Kind, size: Vec3, solid: list[str], rng: np.random.Generator) -> list[Patch]:
    """Draw a board, a door, windows on two walls, curtains, pictures; lamps every four metres of a closed ceiling."""
    plan = _WallPlan(size, rng)
    high = size[2] >= 4
    if kind.board:
        board_top = min(2.3, size[2] - 0.2)
        plan.patches.append(Patch("west", "board", (size[1] * 0.25, 0.9), (size[1] * 0.75, board_top)))
    plan.put(solid, "door", 1.8 if high else 0.9, 0.0, 2.8 if high else 2.05)
    glazed = [solid[i] for i in rng.permutation(len(solid))[:2]]
    sill = size[2] * 0.4 if high else 0.9
    for _ in range(int(rng.integers(kind.windows[0], kind.windows[1] + 1))):
        plan.put(glazed, "window", rng.uniform(0.9, 1.6), sill, sill + min(1.4, size[2] * 0.45))
    for _ in range(kind.curtains):
        plan.put(solid, "curtain", rng.uniform(0.8, 1.6), 0.05, size[2] * 0.9)
    for _ in range(kind.pictures):
        plan.put(solid, "canvas", rng.uniform(0.7, 1.5), 1.2, rng.uniform(1.8, 2.3))
    lamps: list[Patch] = []
    if kind.ceiling != ("open",):
        columns, lines = max(1, round(size[0] / 4)), max(1, round(size[1] / 4))
        for x in ((i + 0.5) * size[0] / columns for i in range(columns)):
            for y in ((i + 0.5) * size[1] / lines for i in range(lines)):
                lamps.append(Patch("ceiling", "lamp", (x - 0.45, y - 0.15), (x + 0.45, y + 0.15)))
    return [*plan.patches, *lamps]


def draw_room(kind: Kind, indoor: bool, rng: np.random.Generator) -> Room:
    """Draw a random space of a kind, named after the kind."""

    def pick(names: tuple[str, ...]) -> str:
        return names[rng.integers(len(names))]

    length, width, height = (
        round(float(rng.uniform(*limits)), 2) for limits in (kind.length, kind.width, kind.height)
    )
    size = (length, width, height)
    main = pick(kind.walls)
    surfaces = {"floor": pick(kind.floor), "ceiling": pick(kind.ceiling), **dict.fromkeys(WALLS, main)}
    solid = [wall for wall in WALLS if wall not in kind.open_walls]
    if kind.accent and rng.random() < 0.7:
        surfaces[solid[rng.integers(len(solid))]] = pick(kind.accent)
    surfaces.update(dict.fromkeys(kind.open_walls, "open"))
    plan = FloorPlan(size, rng)
    kind.furnish(plan)
    patches = _draw_patches(kind, size, solid, rng)
    used = {*surfaces.values(), *(p.material for p in patches), *(b.material for b in plan.boxes)}
    tints = {}
    for name in sorted(used - {"open", "lamp"}):
        red, green, blue = (float(t) for t in rng.uniform(0.82, 1.12) * rng.uniform(0.9, 1.1, 3))
        tints[name] = (red, green, blue)
    return Room(kind.name, kind.name, indoor, size, surfaces, tuple(patches), tuple(plan.boxes), tints)


def _excess(room: Room) -> float:
    """Seconds by which a room's decay is outside the wanted range."""
    low, high = _INDOOR_DECAY_SECONDS
    decay = float(predicted_decay_times(room)[2:4].mean())
    return max(low - decay, decay - high, 0.0)


def make_rooms(count: int, seed: int) -> list[Room]:
    """``count`` spaces, every sixth outdoors, named ``<index>-<kind>``.

    The kinds come in a fixed order, and each space is drawn on its own: two of them may sound alike, as real ones do.
    Indoors a draw whose decay lies outside the wanted range is drawn again, up to 32 times.
    """
    rooms = []
    for index in range(count):
        indoor = index % _OUTDOOR_EVERY != 2
        outdoors_before = (index + 3) // _OUTDOOR_EVERY
        kinds, position = (INDOOR, index - outdoors_before) if indoor else (OUTDOOR, outdoors_before)
        rng = np.random.default_rng([seed, index, 0])
        kind = kinds[position % len(kinds)]
        room = draw_room(kind, indoor, rng)
        for _ in range(_DRAWS - 1):
            if not indoor or _excess(room) == 0:
                break
            room = min(room, draw_room(kind, indoor, rng), key=_excess)
        rooms.append(replace(room, name=f"{index:02d}-{room.kind.replace(' ', '-')}"))
    return rooms
