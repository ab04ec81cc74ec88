"""The kinds of space that are simulated, and the choice of a set of spaces that differ by ear and by eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .furniture import FloorPlan, bed, block, car, chair, sofa, table, tree
from .rooms import SURFACES, WALLS, Patch, Room, predicted_decay_times

Range = tuple[float, float]
Furnish = Callable[[FloorPlan, np.random.Generator], None]


def _several(plan: FloorPlan, rng: np.random.Generator, low: int, high: int, make: Callable[[], list], gap: float = 0.5) -> None:
    for _ in range(int(rng.integers(low, high + 1))):
        plan.anywhere(make(), gap)


def _tables_with_chairs(plan: FloorPlan, rng: np.random.Generator, count: int, width: float, depth: float) -> None:
    for _ in range(count):
        if plan.anywhere(table(width, depth), 0.6):
            plan.anywhere(chair(), 0.1)
            plan.anywhere(chair(), 0.1)


def _booth(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(table(0.8, 0.5))
    plan.anywhere(chair("upholstery"), 0.3)


def _bedroom(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(bed(rng.uniform(1.0, 1.8)))
    plan.against_wall(block(rng.uniform(1.0, 1.8), 0.6, 2.0, "furniture wood"))
    plan.against_wall(table(1.0, 0.5))


def _living_room(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(sofa(rng.uniform(1.8, 2.6)))
    plan.against_wall(sofa(0.9))
    plan.against_wall(block(1.4, 0.35, 2.0, "books"))
    plan.anywhere(table(1.2, 0.7, 0.45))
    plan.against_wall(block(1.6, 0.45, 0.5, "furniture wood"))


def _office(plan: FloorPlan, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(2, 5))):
        if plan.against_wall(table(1.6, 0.8)):
            plan.anywhere(chair("upholstery"), 0.2)
    plan.against_wall(block(1.0, 0.4, 1.9, "books"))


def _meeting_room(plan: FloorPlan, rng: np.random.Generator) -> None:
    length, width = plan.size[0] * 0.5, plan.size[1] * 0.3
    x0, y0 = (plan.size[0] - length) / 2, (plan.size[1] - width) / 2
    plan.at(table(length, width), x0, y0)
    for i in range(int(length / 0.8)):
        plan.at(chair("upholstery"), x0 + 0.8 * i, y0 - 0.6)
        plan.at(chair("upholstery"), x0 + 0.8 * i, y0 + width + 0.1, "north")


def _kitchen(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(block(min(2.4, plan.size[0] - 0.5), 0.6, 0.9, "furniture wood"), ("south", "north"))
    plan.against_wall(block(0.6, 0.65, 1.9, "appliance"))
    plan.against_wall(block(0.6, 0.6, 0.9, "appliance"))
    plan.anywhere(table(1.1, 0.8))


def _bathroom(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(block(1.6, 0.7, 0.55, "appliance"))
    plan.against_wall(block(0.6, 0.45, 0.85, "appliance"))


def _classroom(plan: FloorPlan, rng: np.random.Generator) -> None:
    for x0 in np.arange(2.4, plan.size[0] - 1.4, 1.5):
        for y0 in np.arange(0.8, plan.size[1] - 1.6, 2.0):
            plan.at(table(1.3, 0.6), x0, y0, "east")
            plan.at(chair(), x0 + 0.75, y0 + 0.4, "east")
    plan.at(table(1.6, 0.8), 0.8, plan.size[1] / 2 - 0.8, "west")


def _library(plan: FloorPlan, rng: np.random.Generator) -> None:
    for x0 in np.arange(1.5, plan.size[0] - 2.5, 2.2):
        plan.at(block(plan.size[1] * 0.4, 0.5, 2.1, "books"), x0, plan.size[1] * 0.55, "west")
    for _ in range(3):
        plan.against_wall(block(2.5, 0.4, 2.4, "books"))
    _tables_with_chairs(plan, rng, 2, 1.6, 0.9)


def _auditorium(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.at(block(1.0, 0.6, 1.1, "furniture wood"), 1.2, plan.size[1] * 0.5 - 0.5)
    plan.rows("upholstery", 0.95, 0.6, rng.uniform(1.5, 2.0), 1.4, plan.size[0] * 0.3)


def _church(plan: FloorPlan, rng: np.random.Generator) -> None:
    for x0 in np.arange(3.0, plan.size[0] - 2, 5.0):
        for y0 in (plan.size[1] * 0.2, plan.size[1] * 0.8 - 0.7):
            plan.at(block(0.7, 0.7, plan.size[2], "limestone"), x0, y0)
    plan.rows("furniture wood", 0.95, 0.5, 1.6, plan.size[1] * 0.25, plan.size[0] * 0.3)
    plan.at(block(2.0, 1.0, 1.0, "marble"), 1.5, plan.size[1] * 0.5 - 1.0, "west")


def _gym(plan: FloorPlan, rng: np.random.Generator) -> None:
    for _ in range(4):
        plan.against_wall(block(3.0, 0.4, 0.45, "furniture wood"))
    _several(plan, rng, 2, 4, lambda: block(2.0, 1.2, 0.3, "bedding"))


def _warehouse(plan: FloorPlan, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(4, 8))):
        plan.against_wall(block(rng.uniform(1.5, 4), 1.2, rng.uniform(1.5, 4.0), "crate"))
    _several(plan, rng, 3, 7, lambda: block(rng.uniform(0.9, 1.5), rng.uniform(0.9, 1.5), rng.uniform(0.8, 1.6), "crate"))


def _garage(plan: FloorPlan, rng: np.random.Generator) -> None:
    _several(plan, rng, 1, 2, car, 0.4)
    plan.against_wall(block(1.6, 0.5, 1.8, "metal sheet"))


def _stairwell(plan: FloorPlan, rng: np.random.Generator) -> None:
    for step in range(8):
        plan.at(block(1.1, 0.3, 0.18 * (step + 1), "concrete floor"), 0.0, 0.4 + 0.3 * step)


def _pool(plan: FloorPlan, rng: np.random.Generator) -> None:
    length, width = plan.size[0] * 0.6, plan.size[1] * 0.5
    plan.at(block(length, width, 0.06, "water"), plan.size[0] * 0.2, plan.size[1] * 0.25)
    for _ in range(3):
        plan.against_wall(block(2.0, 0.45, 0.45, "furniture wood"))


def _restaurant(plan: FloorPlan, rng: np.random.Generator) -> None:
    _tables_with_chairs(plan, rng, 5, 1.0, 0.8)
    plan.against_wall(block(2.8, 0.6, 1.1, "furniture wood"))


def _gallery(plan: FloorPlan, rng: np.random.Generator) -> None:
    _several(plan, rng, 2, 4, lambda: block(0.5, 0.5, 1.1, "limestone"), 1.0)
    plan.anywhere(block(1.8, 0.6, 0.45, "furniture wood"))


def _corridor(plan: FloorPlan, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(2, 5))):
        plan.against_wall(block(rng.uniform(0.8, 1.6), 0.35, rng.choice([0.45, 1.9]), "furniture wood"), ("south", "north"))


def _wooden_cabin(plan: FloorPlan, rng: np.random.Generator) -> None:
    plan.against_wall(block(2.2, 0.6, 0.45, "thin plywood"))
    plan.against_wall(block(1.6, 0.6, 0.9, "thin plywood"))
    plan.anywhere(table(0.9, 0.6, material="thin plywood"), 0.3)


def _courtyard(plan: FloorPlan, rng: np.random.Generator) -> None:
    _several(plan, rng, 1, 2, lambda: tree(rng.uniform(3, 5), 1.8), 1.0)
    for _ in range(3):
        plan.against_wall(block(1.6, 0.45, 0.45, "furniture wood"))


def _street(plan: FloorPlan, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(2, 5))):
        plan.against_wall([((lo[1], lo[0], lo[2]), (up[1], up[0], up[2]), m) for lo, up, m in car()], ("south", "north"))


def _garden(plan: FloorPlan, rng: np.random.Generator) -> None:
    _several(plan, rng, 2, 4, lambda: tree(rng.uniform(3, 6), rng.uniform(1.6, 2.6)), 1.0)
    for _ in range(3):
        plan.against_wall(block(3.0, 0.7, 1.2, "hedge"))


@dataclass(frozen=True)
class Kind:
    """Ranges in metres, and material names to draw from. ``accent`` replaces the material of one wall."""

    name: str
    length: Range
    width: Range
    height: Range
    floor: tuple[str, ...]
    walls: tuple[str, ...]
    ceiling: tuple[str, ...]
    furnish: Furnish
    accent: tuple[str, ...] = ()
    windows: tuple[int, int] = (0, 0)
    curtains: int = 0
    pictures: int = 0
    board: bool = False
    open_walls: tuple[str, ...] = ()


_HARD_CEILING = ("plaster", "concrete")
INDOOR = (
    Kind("vocal booth", (2.0, 2.8), (1.7, 2.3), (2.1, 2.4), ("deep carpet",), ("foam", "fabric panel"), ("acoustic tile",), _booth),
    Kind("church", (18, 26), (10, 13), (8, 11), ("marble", "limestone"), ("limestone",), ("wood panel", "plaster"), _church, windows=(6, 10), curtains=2),
    Kind("office", (4.5, 8), (3.5, 6), (2.6, 3.0), ("carpet",), ("plasterboard",), ("acoustic tile", "perforated gypsum"), _office, ("glass", "wood panel"), (1, 3)),
    Kind("bathroom", (2.2, 3.6), (1.8, 2.6), (2.3, 2.6), ("ceramic tile",), ("ceramic tile",), ("plaster",), _bathroom, windows=(0, 1)),
    Kind("lecture hall", (12, 18), (9, 13), (4.5, 6.5), ("parquet", "carpet"), ("wood panel", "plaster"), ("plaster", "perforated gypsum"), _auditorium, ("fabric panel",), board=True),
    Kind("garage", (6, 10), (5.5, 7.5), (2.4, 3.0), ("concrete floor",), ("concrete", "brick"), ("concrete",), _garage, ("metal sheet",)),
    Kind("living room", (5, 7.5), (4, 5.5), (2.5, 3.0), ("parquet", "carpet"), ("plaster",), ("plaster",), _living_room, ("brick", "wood panel"), (1, 3), 2, 2),
    Kind("swimming pool", (18, 26), (10, 14), (5, 7), ("ceramic tile",), ("ceramic tile", "painted brick"), ("metal sheet", "acoustic plaster"), _pool, ("glass",), (3, 6)),
    Kind("classroom", (7, 10), (6, 8), (2.9, 3.4), ("linoleum",), ("plaster", "painted brick"), ("acoustic plaster", "plaster"), _classroom, (), (2, 4), 0, 1, True),
    Kind("stairwell", (4, 5.5), (3, 4), (6, 10), ("concrete floor",), ("painted brick", "concrete"), ("concrete",), _stairwell, windows=(0, 2)),
    Kind("theatre", (16, 24), (13, 18), (7, 10), ("deep carpet", "parquet"), ("curtain", "wood panel"), ("acoustic plaster", "plaster"), _auditorium, ("curtain",), curtains=2),
    Kind("kitchen", (3.2, 5), (2.8, 4), (2.4, 2.8), ("ceramic tile", "linoleum"), ("plaster", "plasterboard"), ("plaster", "plasterboard"), _kitchen, ("ceramic tile",), (1, 2)),
    Kind("gymnasium", (18, 26), (12, 16), (6, 8), ("parquet",), ("painted brick",), ("acoustic plaster", "perforated gypsum"), _gym, ("wood panel",), (3, 6)),
    Kind("wooden cabin", (3.5, 5.5), (3, 4.5), (2.2, 2.8), ("thin plywood", "parquet"), ("thin plywood", "wood panel"), ("thin plywood", "wood panel"), _wooden_cabin, windows=(1, 2)),
    Kind("corridor", (14, 26), (1.9, 2.6), (2.5, 3.0), ("linoleum", "marble"), ("plaster", "painted brick"), ("plaster", "acoustic tile"), _corridor, pictures=2),
    Kind("warehouse", (18, 28), (11, 16), (5, 8), ("concrete floor",), ("metal sheet", "brick"), ("metal sheet",), _warehouse, windows=(0, 3)),
    Kind("bedroom", (3.2, 4.6), (2.8, 4), (2.4, 2.7), ("carpet", "deep carpet"), ("plasterboard", "plaster"), ("plasterboard",), _bedroom, (), (1, 2), 2, 1),
    Kind("gallery", (9, 15), (7, 10), (4, 6), ("marble", "concrete floor"), ("plaster",), _HARD_CEILING, _gallery, ("concrete",), (0, 2), 0, 6),
    Kind("library", (9, 14), (7, 10), (3, 4.2), ("carpet", "parquet"), ("wood panel", "plaster"), ("plaster", "acoustic tile"), _library, ("brick",), (1, 3)),
    Kind("restaurant", (8, 12), (6, 9), (3, 3.8), ("parquet", "ceramic tile"), ("brick", "plaster"), ("plaster", "wood panel"), _restaurant, ("wood panel", "glass"), (2, 4), 1, 2),
    Kind("meeting room", (5.5, 8), (4, 5.5), (2.6, 3.0), ("carpet", "deep carpet"), ("plasterboard", "glass"), ("acoustic tile", "plasterboard"), _meeting_room, ("glass",), (1, 2), 0, 1, True),
)  # fmt: skip
OUTDOOR = (
    Kind("courtyard", (9, 16), (7, 12), (7, 11), ("paving", "gravel"), ("facade", "brick"), ("open",), _courtyard, windows=(6, 12)),
    Kind("street", (24, 36), (7, 11), (8, 13), ("asphalt", "paving"), ("facade", "brick"), ("open",), _street, windows=(6, 12), open_walls=("west", "east")),
    Kind("garden", (12, 20), (9, 15), (5, 8), ("grass",), ("brick", "hedge"), ("open",), _garden, open_walls=("west", "east", "north")),
    Kind("square", (26, 40), (20, 30), (9, 14), ("paving",), ("facade", "limestone"), ("open",), _courtyard, windows=(8, 14), open_walls=("west",)),
)  # fmt: skip

_INDOOR_DECAY_SECONDS = (0.15, 2.4)  # Eyring, mean of 500 Hz and 1 kHz; a hall beyond it needs over 3 s of response
_OUTDOOR_EVERY = 6  # 1 in 6: 4 of 24, so that the outdoor columns of the table are more than one space
_CANDIDATES = 8


def _add_patches(kind: Kind, size: tuple[float, float, float], solid: list[str], rng: np.random.Generator) -> list[Patch]:
    patches: list[Patch] = []

    def add(wall: str, material: str, width: float, bottom: float, top: float) -> None:
        extent = size[1] if wall in ("west", "east") else size[0]
        top = min(top, size[2] - 0.1)
        for _ in range(20):
            at = rng.uniform(0.15, max(0.16, extent - width - 0.15))
            clash = any(
                p.surface == wall and at < p.upper[0] + 0.1 and at + width > p.lower[0] - 0.1
                and bottom < p.upper[1] and top > p.lower[1]
                for p in patches
            )
            if not clash and at + width < extent and top > bottom:
                patches.append(Patch(wall, material, (at, bottom), (at + width, top)))
                return

    if kind.board:
        patches.append(Patch("west", "board", (size[1] * 0.25, 0.9), (size[1] * 0.75, min(2.3, size[2] - 0.2))))
    add(solid[rng.integers(len(solid))], "door", 0.9 if size[2] < 4 else 1.8, 0.0, 2.05 if size[2] < 4 else 2.8)
    glazed = [solid[i] for i in rng.permutation(len(solid))[:2]]
    for _ in range(int(rng.integers(kind.windows[0], kind.windows[1] + 1))):
        bottom = 0.9 if size[2] < 4 else size[2] * 0.4
        add(glazed[rng.integers(len(glazed))], "window", rng.uniform(0.9, 1.6), bottom, bottom + min(1.4, size[2] * 0.45))
    for _ in range(kind.curtains):
        add(solid[rng.integers(len(solid))], "curtain", rng.uniform(0.8, 1.6), 0.05, size[2] * 0.9)
    for _ in range(kind.pictures):
        add(solid[rng.integers(len(solid))], "canvas", rng.uniform(0.7, 1.5), 1.2, rng.uniform(1.8, 2.3))
    if kind.ceiling != ("open",):
        columns, lines = max(1, round(size[0] / 4)), max(1, round(size[1] / 4))
        for x in (np.arange(columns) + 0.5) * size[0] / columns:
            for y in (np.arange(lines) + 0.5) * size[1] / lines:
                patches.append(Patch("ceiling", "lamp", (x - 0.45, y - 0.15), (x + 0.45, y + 0.15)))
    return patches


def draw_room(kind: Kind, indoor: bool, rng: np.random.Generator) -> Room:
    """One random space of a kind, named after the kind."""

    def pick(names: tuple[str, ...]) -> str:
        return names[rng.integers(len(names))]

    size = tuple(float(np.round(rng.uniform(*limits), 2)) for limits in (kind.length, kind.width, kind.height))
    main = pick(kind.walls)
    surfaces = {"floor": pick(kind.floor), "ceiling": pick(kind.ceiling), **dict.fromkeys(WALLS, main)}
    solid = [wall for wall in WALLS if wall not in kind.open_walls]
    if kind.accent and rng.random() < 0.7:
        surfaces[solid[rng.integers(len(solid))]] = pick(kind.accent)
    surfaces.update(dict.fromkeys(kind.open_walls, "open"))
    plan = FloorPlan(size, rng)  # type: ignore[arg-type]
    kind.furnish(plan, rng)
    patches = _add_patches(kind, size, solid, rng)  # type: ignore[arg-type]
    used = {*surfaces.values(), *(p.material for p in patches), *(b.material for b in plan.boxes)} - {"open", "lamp"}
    tints = {name: tuple(float(t) for t in rng.uniform(0.82, 1.12) * rng.uniform(0.9, 1.1, 3)) for name in sorted(used)}
    return Room(kind.name, kind.name, indoor, size, surfaces, tuple(patches), tuple(plan.boxes), tints)  # type: ignore[arg-type]


def _signature(room: Room) -> NDArray[np.float64]:
    """What tells spaces apart by ear: octaves of decay time per band, and of the room's linear size."""
    openness = sum(room.surfaces[s] == "open" for s in SURFACES)
    size = np.log2(room.volume) / 3
    return np.concatenate([np.log2(predicted_decay_times(room)), [2 * size, 0.5 * openness]])


def make_rooms(count: int, seed: int) -> list[Room]:
    """``count`` spaces, every sixth outdoors, named ``<index>-<kind>``.

    The kinds come in a fixed order; of eight random spaces of the kind the one is taken that differs most from
    all spaces before it (largest smallest distance in decay time per band and size), so that the whole set
    spreads over what can be heard.
    """
    rooms: list[Room] = []
    signatures: list[NDArray[np.float64]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, index, 0])
        indoor = index % _OUTDOOR_EVERY != 2
        outdoors_before = (index + 3) // _OUTDOOR_EVERY
        kind = INDOOR[(index - outdoors_before) % len(INDOOR)] if indoor else OUTDOOR[outdoors_before % len(OUTDOOR)]
        candidates = [draw_room(kind, indoor, rng) for _ in range(_CANDIDATES)]
        if indoor:
            low, high = _INDOOR_DECAY_SECONDS
            middle = [float(predicted_decay_times(r)[2:4].mean()) for r in candidates]
            excess = [max(low - t, t - high, 0.0) for t in middle]
            candidates = [r for r, e in zip(candidates, excess, strict=True) if e <= min(excess)]
        vectors = [_signature(room) for room in candidates]
        gaps = [min((float(np.linalg.norm(v - s)) for s in signatures), default=0.0) for v in vectors]
        best = int(np.argmax(gaps))
        signatures.append(vectors[best])
        rooms.append(replace(candidates[best], name=f"{index:02d}-{kind.name.replace(' ', '-')}"))
    return rooms
