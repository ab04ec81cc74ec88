"""The furniture of each kind of space. Every function fills a floor plan, drawing from its generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cmx_fast.simulate.rooms.furniture import FloorPlan, Piece, bed, block, car, chair, sofa, table, tree


def _several(plan: FloorPlan, counts: tuple[int, int], make: Callable[[], Piece], gap: float = 0.5) -> None:
    for _ in range(int(plan.rng.integers(counts[0], counts[1] + 1))):
        plan.anywhere(make(), gap)


def _steps(first: float, end: float, step: float) -> list[float]:
    return [float(at) for at in np.arange(first, end, step)]


def _tables_with_chairs(plan: FloorPlan, count: int, width: float, depth: float) -> None:
    for _ in range(count):
        if plan.anywhere(table(width, depth), 0.6):
            plan.anywhere(chair(), 0.1)
            plan.anywhere(chair(), 0.1)


def booth(plan: FloorPlan) -> None:
    plan.against_wall(table(0.8, 0.5))
    plan.anywhere(chair("upholstery"), 0.3)


def bedroom(plan: FloorPlan) -> None:
    plan.against_wall(bed(plan.rng.uniform(1.0, 1.8)))
    plan.against_wall(block(plan.rng.uniform(1.0, 1.8), 0.6, 2.0, "furniture wood"))
    plan.against_wall(table(1.0, 0.5))


def living_room(plan: FloorPlan) -> None:
    plan.against_wall(sofa(plan.rng.uniform(1.8, 2.6)))
    plan.against_wall(sofa(0.9))
    plan.against_wall(block(1.4, 0.35, 2.0, "books"))
    plan.anywhere(table(1.2, 0.7, 0.45))
    plan.against_wall(block(1.6, 0.45, 0.5, "furniture wood"))


def office(plan: FloorPlan) -> None:
    for _ in range(int(plan.rng.integers(2, 5))):
        if plan.against_wall(table(1.6, 0.8)):
            plan.anywhere(chair("upholstery"), 0.2)
    plan.against_wall(block(1.0, 0.4, 1.9, "books"))


def meeting_room(plan: FloorPlan) -> None:
    length, width = plan.size[0] * 0.5, plan.size[1] * 0.3
    x0, y0 = (plan.size[0] - length) / 2, (plan.size[1] - width) / 2
    plan.at(table(length, width), x0, y0)
    for i in range(int(length / 0.8)):
        plan.at(chair("upholstery"), x0 + 0.8 * i, y0 - 0.6)
        plan.at(chair("upholstery"), x0 + 0.8 * i, y0 + width + 0.1, "north")


def kitchen(plan: FloorPlan) -> None:
    plan.against_wall(block(min(2.4, plan.size[0] - 0.5), 0.6, 0.9, "furniture wood"), ("south", "north"))
    plan.against_wall(block(0.6, 0.65, 1.9, "appliance"))
    plan.against_wall(block(0.6, 0.6, 0.9, "appliance"))
    plan.anywhere(table(1.1, 0.8))


def bathroom(plan: FloorPlan) -> None:
    plan.against_wall(block(1.6, 0.7, 0.55, "appliance"))
    plan.against_wall(block(0.6, 0.45, 0.85, "appliance"))


def classroom(plan: FloorPlan) -> None:
    for x0 in _steps(2.4, plan.size[0] - 1.4, 1.5):
        for y0 in _steps(0.8, plan.size[1] - 1.6, 2.0):
            plan.at(table(1.3, 0.6), x0, y0, "east")
            plan.at(chair(), x0 + 0.75, y0 + 0.4, "east")
    plan.at(table(1.6, 0.8), 0.8, plan.size[1] / 2 - 0.8, "west")


def library(plan: FloorPlan) -> None:
    for x0 in _steps(1.5, plan.size[0] - 2.5, 2.2):
        plan.at(block(plan.size[1] * 0.4, 0.5, 2.1, "books"), x0, plan.size[1] * 0.55, "west")
    for _ in range(3):
        plan.against_wall(block(2.5, 0.4, 2.4, "books"))
    _tables_with_chairs(plan, 2, 1.6, 0.9)


def auditorium(plan: FloorPlan) -> None:
    plan.at(block(1.0, 0.6, 1.1, "furniture wood"), 1.2, plan.size[1] * 0.5 - 0.5)
    plan.rows("upholstery", 0.95, 0.6, pitch=plan.rng.uniform(1.5, 2.0), aisle=1.4, front=plan.size[0] * 0.3)


def church(plan: FloorPlan) -> None:
    for x0 in _steps(3.0, plan.size[0] - 2, 5.0):
        for y0 in (plan.size[1] * 0.2, plan.size[1] * 0.8 - 0.7):
            plan.at(block(0.7, 0.7, plan.size[2], "limestone"), x0, y0)
    plan.rows("furniture wood", 0.95, 0.5, pitch=1.6, aisle=plan.size[1] * 0.25, front=plan.size[0] * 0.3)
    plan.at(block(2.0, 1.0, 1.0, "marble"), 1.5, plan.size[1] * 0.5 - 1.0, "west")


def gym(plan: FloorPlan) -> None:
    for _ in range(4):
        plan.against_wall(block(3.0, 0.4, 0.45, "furniture wood"))
    _several(plan, (2, 4), lambda: block(2.0, 1.2, 0.3, "bedding"))


def warehouse(plan: FloorPlan) -> None:
    for _ in range(int(plan.rng.integers(4, 8))):
        plan.against_wall(block(plan.rng.uniform(1.5, 4), 1.2, plan.rng.uniform(1.5, 4.0), "crate"))
    uniform = plan.rng.uniform
    _several(plan, (3, 7), lambda: block(uniform(0.9, 1.5), uniform(0.9, 1.5), uniform(0.8, 1.6), "crate"))


def garage(plan: FloorPlan) -> None:
    _several(plan, (1, 2), car, 0.4)
    plan.against_wall(block(1.6, 0.5, 1.8, "metal sheet"))


def stairwell(plan: FloorPlan) -> None:
    for step in range(8):
        plan.at(block(1.1, 0.3, 0.18 * (step + 1), "concrete floor"), 0.0, 0.4 + 0.3 * step)


def pool(plan: FloorPlan) -> None:
    length, width = plan.size[0] * 0.6, plan.size[1] * 0.5
    plan.at(block(length, width, 0.06, "water"), plan.size[0] * 0.2, plan.size[1] * 0.25)
    for _ in range(3):
        plan.against_wall(block(2.0, 0.45, 0.45, "furniture wood"))


def restaurant(plan: FloorPlan) -> None:
    _tables_with_chairs(plan, 5, 1.0, 0.8)
    plan.against_wall(block(2.8, 0.6, 1.1, "furniture wood"))


def gallery(plan: FloorPlan) -> None:
    _several(plan, (2, 4), lambda: block(0.5, 0.5, 1.1, "limestone"), 1.0)
    plan.anywhere(block(1.8, 0.6, 0.45, "furniture wood"))


def corridor(plan: FloorPlan) -> None:
    for _ in range(int(plan.rng.integers(2, 5))):
        height = float(plan.rng.choice([0.45, 1.9]))
        plan.against_wall(
            block(plan.rng.uniform(0.8, 1.6), 0.35, height, "furniture wood"), ("south", "north")
        )


def wooden_cabin(plan: FloorPlan) -> None:
    plan.against_wall(block(2.2, 0.6, 0.45, "thin plywood"))
    plan.against_wall(block(1.6, 0.6, 0.9, "thin plywood"))
    plan.anywhere(table(0.9, 0.6, material="thin plywood"), 0.3)


def courtyard(plan: FloorPlan) -> None:
    _several(plan, (1, 2), lambda: tree(plan.rng.uniform(3, 5), 1.8), 1.0)
    for _ in range(3):
        plan.against_wall(block(1.6, 0.45, 0.45, "furniture wood"))


def street(plan: FloorPlan) -> None:
    for _ in range(int(plan.rng.integers(2, 5))):
        plan.against_wall(car(parked="alongside"), ("south", "north"))


def garden(plan: FloorPlan) -> None:
    _several(plan, (2, 4), lambda: tree(plan.rng.uniform(3, 6), plan.rng.uniform(1.6, 2.6)), 1.0)
    for _ in range(3):
        plan.against_wall(block(3.0, 0.7, 1.2, "hedge"))
