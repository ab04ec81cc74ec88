"""The kinds of space that are simulated: ranges of size, materials to draw from, and their furniture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cmx_fast.simulate.rooms import interiors
from cmx_fast.simulate.rooms.furniture import FloorPlan

Range = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """A kind of space: ranges in metres, and material names to draw from. ``accent`` replaces one wall's material."""

    name: str
    length: Range
    width: Range
    height: Range
    floor: tuple[str, ...]
    walls: tuple[str, ...]
    ceiling: tuple[str, ...]
    furnish: Callable[[FloorPlan], None]
    accent: tuple[str, ...] = ()
    windows: tuple[int, int] = (0, 0)
    curtains: int = 0
    pictures: int = 0
    board: bool = False
    open_walls: tuple[str, ...] = ()


# fmt: off
INDOOR = (
    Kind("vocal booth", (2.0, 2.8), (1.7, 2.3), (2.1, 2.4),
         ("deep carpet",), ("foam", "fabric panel"), ("acoustic tile",), interiors.booth),
    Kind("church", (18, 26), (10, 13), (8, 11),
         ("marble", "limestone"), ("limestone",), ("wood panel", "plaster"), interiors.church,
         windows=(6, 10), curtains=2),
    Kind("office", (4.5, 8), (3.5, 6), (2.6, 3.0),
         ("carpet",), ("plasterboard",), ("acoustic tile", "perforated gypsum"), interiors.office,
         ("glass", "wood panel"), (1, 3)),
    Kind("bathroom", (2.2, 3.6), (1.8, 2.6), (2.3, 2.6),
         ("ceramic tile",), ("ceramic tile",), ("plaster",), interiors.bathroom, windows=(0, 1)),
    Kind("lecture hall", (12, 18), (9, 13), (4.5, 6.5),
         ("parquet", "carpet"), ("wood panel", "plaster"), ("plaster", "perforated gypsum"),
         interiors.auditorium, ("fabric panel",), board=True),
    Kind("garage", (6, 10), (5.5, 7.5), (2.4, 3.0),
         ("concrete floor",), ("concrete", "brick"), ("concrete",), interiors.garage, ("metal sheet",)),
    Kind("living room", (5, 7.5), (4, 5.5), (2.5, 3.0),
         ("parquet", "carpet"), ("plaster",), ("plaster",), interiors.living_room, ("brick", "wood panel"),
         (1, 3), 2, 2),
    Kind("swimming pool", (18, 26), (10, 14), (5, 7),
         ("ceramic tile",), ("ceramic tile", "painted brick"), ("metal sheet", "acoustic plaster"),
         interiors.pool, ("glass",), (3, 6)),
    Kind("classroom", (7, 10), (6, 8), (2.9, 3.4),
         ("linoleum",), ("plaster", "painted brick"), ("acoustic plaster", "plaster"), interiors.classroom,
         (), (2, 4), 0, 1, True),
    Kind("stairwell", (4, 5.5), (3, 4), (6, 10),
         ("concrete floor",), ("painted brick", "plaster"), ("concrete", "plaster"), interiors.stairwell,
         windows=(0, 2)),
    Kind("theatre", (16, 24), (13, 18), (7, 10),
         ("deep carpet", "parquet"), ("curtain", "wood panel"), ("acoustic plaster", "plaster"),
         interiors.auditorium, ("curtain",), curtains=2),
    Kind("kitchen", (3.2, 5), (2.8, 4), (2.4, 2.8),
         ("ceramic tile", "linoleum"), ("plaster", "plasterboard"), ("plaster", "plasterboard"),
         interiors.kitchen, ("ceramic tile",), (1, 2)),
    Kind("gymnasium", (18, 26), (12, 16), (6, 8),
         ("parquet",), ("painted brick",), ("acoustic plaster", "perforated gypsum"), interiors.gym,
         ("wood panel",), (3, 6)),
    Kind("wooden cabin", (3.5, 5.5), (3, 4.5), (2.2, 2.8),
         ("thin plywood", "parquet"), ("thin plywood", "wood panel"), ("thin plywood", "wood panel"),
         interiors.wooden_cabin, windows=(1, 2)),
    Kind("corridor", (14, 26), (1.9, 2.6), (2.5, 3.0),
         ("linoleum", "marble"), ("plaster", "painted brick"), ("plaster", "acoustic tile"),
         interiors.corridor, pictures=2),
    Kind("warehouse", (18, 28), (11, 16), (5, 8),
         ("concrete floor",), ("metal sheet", "brick"), ("metal sheet", "wood panel"), interiors.warehouse,
         windows=(0, 3)),
    Kind("bedroom", (3.2, 4.6), (2.8, 4), (2.4, 2.7),
         ("carpet", "deep carpet"), ("plasterboard", "plaster"), ("plasterboard",), interiors.bedroom, (),
         (1, 2), 2, 1),
    Kind("gallery", (9, 15), (7, 10), (4, 6),
         ("marble", "parquet"), ("plaster",), ("plaster", "acoustic plaster"), interiors.gallery,
         ("concrete",), (0, 2), 0, 6),
    Kind("library", (9, 14), (7, 10), (3, 4.2),
         ("carpet", "parquet"), ("wood panel", "plaster"), ("plaster", "acoustic tile"), interiors.library,
         ("brick",), (1, 3)),
    Kind("restaurant", (8, 12), (6, 9), (3, 3.8),
         ("parquet", "ceramic tile"), ("brick", "plaster"), ("plaster", "wood panel"), interiors.restaurant,
         ("wood panel", "glass"), (2, 4), 1, 2),
    Kind("meeting room", (5.5, 8), (4, 5.5), (2.6, 3.0),
         ("carpet", "deep carpet"), ("plasterboard", "glass"), ("acoustic tile", "plasterboard"),
         interiors.meeting_room, ("glass",), (1, 2), 0, 1, True),
)
OUTDOOR = (
    Kind("courtyard", (9, 16), (7, 12), (7, 11),
         ("paving", "gravel"), ("facade", "brick"), ("open",), interiors.courtyard, windows=(6, 12)),
    Kind("street", (24, 36), (7, 11), (8, 13),
         ("asphalt", "paving"), ("facade", "brick"), ("open",), interiors.street, windows=(6, 12),
         open_walls=("west", "east")),
    Kind("garden", (12, 20), (9, 15), (5, 8),
         ("grass",), ("brick", "hedge"), ("open",), interiors.garden, open_walls=("west", "east", "north")),
    Kind("square", (26, 40), (20, 30), (9, 14),
         ("paving",), ("facade", "limestone"), ("open",), interiors.courtyard, windows=(8, 14),
         open_walls=("west",)),
)
# fmt: on
