from dataclasses import replace

import numpy as np
import pytest

from cmx_fast.simulate.rooms.catalogue import make_rooms
from cmx_fast.simulate.rooms.furniture import FloorPlan, chair, table
from cmx_fast.simulate.rooms.geometry import SURFACES, WALLS, Patch, Room
from cmx_fast.simulate.rooms.ray_casting import Scene
from cmx_fast.simulate.rooms.renderer import Camera, render
from cmx_fast.simulate.rooms.textures import TEXTURES, texture

LAMP = (Patch("ceiling", "lamp", (1.5, 1.5), (2.5, 1.8)),)
BARE = Room("bare", "bare", True, (4.0, 3.5, 2.5), dict.fromkeys(SURFACES, "plaster"), LAMP)
CORNER = Camera((0.5, 0.5, 1.5), (3.0, 2.5, 1.0), 90)


def crossing(scene, index, origin, direction):
    """Entry and exit of each ray for one box, by the slab method in float64."""
    with np.errstate(divide="ignore"):
        near = (scene.lower[index][:, None] - origin) / direction
        far = (scene.upper[index][:, None] - origin) / direction
    return np.minimum(near, far).max(axis=0), np.maximum(near, far).min(axis=0)


@pytest.fixture(scope="module")
def classroom():
    return Scene(next(room for room in make_rooms(24, 0) if room.kind == "classroom"))


def neighbouring_rays(scene, count):
    """Rays from one place whose directions turn slowly, as a renderer's do."""
    angle = np.linspace(0, 2 * np.pi, count)
    direction = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(37 * angle) - 0.2])
    direction /= np.linalg.norm(direction, axis=0)
    return (scene.size * [0.31, 0.47, 0.6])[:, None].astype(np.float32), direction.astype(np.float32)


def test_nearest_hit_as_by_testing_every_box(classroom):
    origin, direction = neighbouring_rays(classroom, 3000)
    hits = classroom.trace(origin, direction)
    expected = np.full(3000, np.inf)
    for index in range(len(classroom.lower)):
        enter, leave = crossing(classroom, index, origin.astype(float), direction.astype(float))
        expected = np.where((enter > 1e-4) & (enter < leave) & (enter < expected), enter, expected)
    furnished = hits.target >= 6
    assert 0.1 < furnished.mean() < 0.9
    np.testing.assert_allclose(hits.distance[furnished], expected[furnished], rtol=1e-4)
    assert np.all(expected[~furnished] > hits.distance[~furnished] * (1 - 1e-4))


def test_shadows_as_by_testing_every_box(classroom):
    origin, direction = neighbouring_rays(classroom, 3000)
    point = classroom.trace(origin, direction).point * np.float32(0.999)
    lamp = (classroom.size * [0.5, 0.5, 0.98])[:, None].astype(np.float32)
    blocked = np.zeros(3000, dtype=bool)
    for index in range(len(classroom.lower)):
        enter, leave = crossing(classroom, index, point.astype(float), (lamp - point).astype(float))
        blocked |= (leave > np.maximum(enter, 1e-4)) & (enter < 1)
    free = classroom.is_free(point, lamp)
    assert 0.03 < blocked.mean() < 0.9
    assert np.mean(free == ~blocked) > 0.998  # rays along an edge may fall to either side


def test_empty_bundles():
    scene = Scene(next(room for room in make_rooms(4, 0) if room.boxes))
    nothing = np.zeros((3, 0), np.float32)
    assert scene.is_free(nothing, np.zeros((3, 1), np.float32)).shape == (0,)


@pytest.mark.parametrize("size", [32, 50])
def test_picture_repeats(size):
    first = render(BARE, CORNER, size)
    assert first.shape == (size, size, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render(BARE, CORNER, size))


def test_material_sets_the_colour():
    red = replace(BARE, surfaces=BARE.surfaces | dict.fromkeys(WALLS, "brick"))
    tiled = replace(BARE, surfaces=BARE.surfaces | dict.fromkeys(WALLS, "ceramic tile"))
    brick, tile = (render(room, CORNER, 48).reshape(-1, 3).mean(0) for room in (red, tiled))
    assert brick[0] - brick[2] > 20 > tile[0] - tile[2]


def test_furniture_shows_and_casts_a_shadow():
    plan = FloorPlan(BARE.size, np.random.default_rng(0))
    plan.at(table(1.0, 1.0), 1.6, 1.2)
    without, furnished = render(BARE, CORNER, 64), render(replace(BARE, boxes=tuple(plan.boxes)), CORNER, 64)
    assert np.mean(np.abs(without.astype(int) - furnished) > 8) > 0.05
    scene = Scene(replace(BARE, boxes=tuple(plan.boxes)))
    under, lamp = np.array([[2.1], [1.7], [0.0]], np.float32), np.array([[2.0], [1.65], [2.4]], np.float32)
    assert not scene.is_free(under, lamp)[0]


def test_outdoors_shows_the_sky():
    open_air = replace(BARE, indoor=False, patches=(), surfaces=BARE.surfaces | {"ceiling": "open"})
    up = Camera((2.0, 1.7, 1.0), (2.3, 1.8, 2.6), 60)
    blue = render(open_air, up, 32).reshape(-1, 3).mean(0)
    assert blue[2] > blue[0] + 25


@pytest.mark.parametrize("name", sorted(TEXTURES))
def test_textures_are_around_one_and_fade_far_away(name):
    u, v = (
        axis.ravel().astype(np.float32) for axis in np.meshgrid(np.linspace(0, 9, 90), np.linspace(0, 7, 70))
    )
    near = texture(name, u, v, 0.5, np.zeros_like(u))
    assert 0.4 < near.mean() < 1.5
    assert near.min() >= 0
    assert near.std() > 0.005
    assert texture(name, u, v, 0.5, np.full_like(u, 1.0)).std() < 1e-5


def test_floor_plan_keeps_pieces_apart():
    plan = FloorPlan((5.0, 5.0, 2.5), np.random.default_rng(1))
    while plan.anywhere(chair(), 0.2):
        pass
    seats = [box for box in plan.boxes if box.lower[2] == 0]
    assert len(seats) > 5
    for i, a in enumerate(seats):
        for b in seats[:i]:
            assert any(a.upper[k] + 0.19 < b.lower[k] or b.upper[k] + 0.19 < a.lower[k] for k in (0, 1))
