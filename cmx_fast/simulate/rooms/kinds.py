"""The kinds of space that are simulated: ranges of size, materials to draw from, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cmx_fast.simulate.rooms import interiors as furnishing
from cmx_fast.simulate.rooms.furniture import FloorPlan

Range = tuple[float, float]


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
         ("deep carpet",), ("foam", "fabric panel"), ("acoustic tile",), furnishing.booth),
    Kind("church", (18, 26), (10, 13), (8, 11),
         ("marble", "limestone"), ("limestone",), ("wood panel", "plaster"), furnishing.church,
         windows=(6, 10), curtains=2),
    Kind("office", (4.5, 8), (3.5, 6), (2.6, 3.0),
         ("carpet",), ("plasterboard",), ("acoustic tile", "perforated gypsum"), furnishing.office,
         ("glass", "wood panel"), (1, 3)),
    Kind("bathroom", (2.2, 3.6), (1.8, 2.6), (2.3, 2.6),
         ("ceramic tile",), ("ceramic tile",), ("plaster",), furnishing.bathroom, windows=(0, 1)),
    Kind("lecture hall", (12, 18), (9, 13), (4.5, 6.5),
         ("parquet", "carpet"), ("wood panel", "plaster"), ("plaster", "perforated gypsum"),
         furnishing.auditorium, ("fabric panel",), board=True),
    Kind("garage", (6, 10), (5.5, 7.5), (2.4, 3.0),
         ("concrete floor",), ("concrete", "brick"), ("concrete",), furnishing.garage, ("metal sheet",)),
    Kind("living room", (5, 7.5), (4, 5.5), (2.5, 3.0),
         ("parquet", "carpet"), ("plaster",), ("plaster",), furnishing.living_room, ("brick", "wood panel"),
         (1, 3), 2, 2),
    Kind("swimming pool", (18, 26), (10, 14), (5, 7),
         ("ceramic tile",), ("ceramic tile", "painted brick"), ("metal sheet", "acoustic plaster"),
         furnishing.pool, ("glass",), (3, 6)),
    Kind("classroom", (7, 10), (6, 8), (2.9, 3.4),
         ("linoleum",), ("plaster", "painted brick"), ("acoustic plaster", "plaster"), furnishing.classroom,
         (), (2, 4), 0, 1, True),
    Kind("stairwell", (4, 5.5), (3, 4), (6, 10),
         ("concrete floor",), ("painted brick", "plaster"), ("concrete", "plaster"), furnishing.stairwell,
         windows=(0, 2)),
    Kind("theatre", (16, 24), (13, 18), (7, 10),
         ("deep carpet", "parquet"), ("curtain", "wood panel"), ("acoustic plaster", "plaster"),
         furnishing.auditorium, ("curtain",), curtains=2),
    Kind("kitchen", (3.2, 5), (2.8, 4), (2.4, 2.8),
         ("ceramic tile", "linoleum"), ("plaster", "plasterboard"), ("plaster", "plasterboard"),
         furnishing.kitchen, ("ceramic tile",), (1, 2)),
    Kind("gymnasium", (18, 26), (12, 16), (6, 8),
         ("parquet",), ("painted brick",), ("acoustic plaster", "perforated gypsum"), furnishing.gym,
         ("wood panel",), (3, 6)),
    Kind("wooden cabin", (3.5, 5.5), (3, 4.5), (2.2, 2.8),
         ("thin plywood", "parquet"), ("thin plywood", "wood panel"), ("thin plywood", "wood panel"),
         furnishing.wooden_cabin, windows=(1, 2)),
    Kind("corridor", (14, 26), (1.9, 2.6), (2.5, 3.0),
         ("linoleum", "marble"), ("plaster", "painted brick"), ("plaster", "acoustic tile"),
         furnishing.corridor, pictures=2),
    Kind("warehouse", (18, 28), (11, 16), (5, 8),
         ("concrete floor",), ("metal sheet", "brick"), ("metal sheet", "wood panel"), furnishing.warehouse,
         windows=(0, 3)),
    Kind("bedroom", (3.2, 4.6), (2.8, 4), (2.4, 2.7),
         ("carpet", "deep carpet"), ("plasterboard", "plaster"), ("plasterboard",), furnishing.bedroom, (),
         (1, 2), 2, 1),
    Kind("gallery", (9, 15), (7, 10), (4, 6),
         ("marble", "parquet"), ("plaster",), ("plaster", "acoustic plaster"), furnishing.gallery,
         ("concrete",), (0, 2), 0, 6),
    Kind("library", (9, 14), (7, 10), (3, 4.2),
         ("carpet", "parquet"), ("wood panel", "plaster"), ("plaster", "acoustic tile"), furnishing.library,
         ("brick",), (1, 3)),
    Kind("restaurant", (8, 12), (6, 9), (3, 3.8),
         ("parquet", "ceramic tile"), ("brick", "plaster"), ("plaster", "wood panel"), furnishing.restaurant,
         ("wood panel", "glass"), (2, 4), 1, 2),
    Kind("meeting room", (5.5, 8), (4, 5.5), (2.6, 3.0),
         ("carpet", "deep carpet"), ("plasterboard", "glass"), ("acoustic tile", "plasterboard"),
         furnishing.meeting_room, ("glass",), (1, 2), 0, 1, True),
)
OUTDOOR = (
    Kind("courtyard", (9, 16), (7, 12), (7, 11),
         ("paving", "gravel"), ("facade", "brick"), ("open",), furnishing.courtyard, windows=(6, 12)),
    Kind("street", (24, 36), (7, 11), (8, 13),
         ("asphalt", "paving"), ("facade", "brick"), ("open",), furnishing.street, windows=(6, 12),
         open_walls=("west", "east")),
    Kind("garden", (12, 20), (9, 15), (5, 8),
         ("grass",), ("brick", "hedge"), ("open",), furnishing.garden, open_walls=("west", "east", "north")),
    Kind("square", (26, 40), (20, 30), (9, 14),
         ("paving",), ("facade", "limestone"), ("open",), furnishing.courtyard, windows=(8, 14),
         open_walls=("west",)),
)
# fmt: on
