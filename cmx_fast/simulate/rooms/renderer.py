"""Pictures of a simulated space: ray casting in numpy with textures, lamps or sun, shadows and mirror floors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmx_fast.simulate.rooms.geometry import SURFACES, Room, Vec3
from cmx_fast.simulate.rooms.materials import MATERIALS, Material
from cmx_fast.simulate.rooms.ray_casting import SURFACE_ORDER, TILE, Array, Hits, Scene, dot
from cmx_fast.simulate.rooms.textures import texture

_SUPERSAMPLING = 1.5
_SUN = np.array([[0.450], [0.300], [0.841]], np.float32)
_SUNLIGHT, _SKYLIGHT = (
    np.array([[0.85], [0.79], [0.68]], np.float32),
    np.array([[0.42], [0.47], [0.55]], np.float32),
)
_LAMPLIGHT, _ROOMLIGHT = np.array([[0.88], [0.84], [0.75]], np.float32), np.float32(0.42)
_HORIZON, _ZENITH = (
    np.array([[0.80], [0.86], [0.92]], np.float32),
    np.array([[0.18], [0.38], [0.75]], np.float32),
)
_SHADOW_LAMPS = 2  # lamps that are traced; the others are in the ambient light
_HAZE_METRES = 90


@dataclass(frozen=True)
class Camera:
    """A viewpoint and the point it looks at (metres), and the field of view in degrees, both ways."""

    position: Vec3
    target: Vec3
    field_of_view: float = 75.0


def _albedo(room: Room, material: Material) -> Array:
    tinted = np.clip(np.multiply(material.colour, room.tints.get(material.name, (1, 1, 1))), 0.02, 1)
    return (tinted**2.2).astype(np.float32)[:, None]


def _other_axes(axis: int) -> tuple[int, int]:
    first, second = (i for i in range(3) if i != axis)
    return first, second


def _surface_colour(scene: Scene, hits: Hits, pixel_angle: float) -> tuple[Array, Array, Array]:
    """Albedo (3, N), own light (N,) and gloss (N,) at every hit."""
    room = scene.room
    count = len(hits.distance)
    colour = np.zeros((3, count), dtype=np.float32)
    glow, gloss = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.float32)

    def paint(
        rays: NDArray[np.intp], material: Material, axis: int, corner: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        if not rays.size:
            return
        first, second = _other_axes(axis)
        u, v = (
            hits.point[first, rays] - np.float32(corner[0]),
            hits.point[second, rays] - np.float32(corner[1]),
        )
        factor = texture(
            material.texture, u, v, material.period, hits.distance[rays] * np.float32(pixel_angle)
        )
        colour[:, rays] = _albedo(room, material) * factor
        glow[rays] = material.glow * (factor if material.texture == "pane" else 1)
        gloss[rays] = material.gloss

    for number, name in enumerate(SURFACE_ORDER):
        rays = np.flatnonzero(hits.target == number)
        if not rays.size:
            continue
        axis = SURFACES[name][0]
        paint(rays, room.material(name), axis)
        first, second = _other_axes(axis)
        a, b = hits.point[first, rays], hits.point[second, rays]
        for patch in (p for p in room.patches if p.surface == name):
            inside = (
                (a >= patch.lower[0]) & (a <= patch.upper[0]) & (b >= patch.lower[1]) & (b <= patch.upper[1])
            )
            paint(rays[inside], MATERIALS[patch.material], axis, patch.lower)
    on_boxes = np.flatnonzero(hits.target >= 6)
    for index, box in enumerate(room.boxes):
        rays = on_boxes[hits.target[on_boxes] == 6 + index]
        for axis in range(3):
            paint(rays[hits.axis[rays] == axis], MATERIALS[box.material], axis)
    return colour, glow, gloss


def _occlusion(scene: Scene, hits: Hits) -> Array:
    """Share of the ambient light that arrives: less near the room's edges and beside furniture on the floor."""
    share = np.ones(len(hits.distance), dtype=np.float32)
    for number, name in enumerate(SURFACE_ORDER):
        if scene.room.surfaces[name] != "open":
            axis, upper_end = SURFACES[name]
            gap = scene.size[axis] - hits.point[axis] if upper_end else hits.point[axis]
            share -= np.float32(0.32) * np.exp(-np.abs(gap) / np.float32(0.35)) * (hits.target != number)
    floor = np.flatnonzero(hits.target == SURFACE_ORDER.index("floor"))
    x, y = hits.point[0, floor], hits.point[1, floor]
    for lower, upper in zip(scene.lower, scene.upper, strict=True):
        beside = np.flatnonzero(
            (x > lower[0] - 0.7) & (x < upper[0] + 0.7) & (y > lower[1] - 0.7) & (y < upper[1] + 0.7)
        )
        if lower[2] < 0.5 and beside.size:
            dx = np.maximum(np.maximum(lower[0] - x[beside], x[beside] - upper[0]), 0)
            dy = np.maximum(np.maximum(lower[1] - y[beside], y[beside] - upper[1]), 0)
            share[floor[beside]] *= 1 - np.float32(0.45) * np.exp(-np.hypot(dx, dy) / np.float32(0.22))
    return np.clip(share, 0.15, 1)


def _from_lamp(scene: Scene, place: Array, point: Array, normal: Array) -> Array:
    """Lamp light that arrives at each point, shape (N,): cosine, fall-off with distance, shadow."""
    way = place - point
    reach = np.sqrt(dot(way, way))
    way /= reach
    facing = dot(way, normal)
    rays = np.flatnonzero(facing > 0)
    light = np.zeros_like(reach)
    free = scene.is_free(point[:, rays], place)
    fall_off = 1 / (1 + (reach[rays] / (0.9 * scene.size[2])) ** 2)
    light[rays] = facing[rays] * free * fall_off
    return light


def _incident_light(scene: Scene, hits: Hits) -> Array:
    """Light on every hit, linear RGB (3, N)."""
    normal = hits.normal()
    point = hits.point + np.float32(1e-3) * normal
    ambient = _occlusion(scene, hits)
    if not scene.room.indoor:
        light = _SKYLIGHT * ambient * (0.8 + 0.2 * normal[2])
        facing = dot(_SUN, normal)
        rays = np.flatnonzero(facing > 0)
        free = scene.is_free(point[:, rays], point[:, rays] + np.float32(sum(scene.room.size)) * _SUN)
        light[:, rays] += _SUNLIGHT * (facing[rays] * free)
        return light
    lamps = sorted((p for p in scene.room.patches if p.material == "lamp"), key=lambda p: p.lower)
    light = np.broadcast_to(_ROOMLIGHT * ambient, point.shape).copy()
    traced = lamps[:: max(1, len(lamps) // _SHADOW_LAMPS)][:_SHADOW_LAMPS]
    for lamp in traced:
        (x0, y0), (x1, y1) = lamp.lower, lamp.upper
        place = np.array([[(x0 + x1) / 2], [(y0 + y1) / 2], [scene.room.size[2] - 0.05]], np.float32)
        light += (
            _LAMPLIGHT / np.float32(len(traced)) * np.float32(1.6) * _from_lamp(scene, place, point, normal)
        )
    return light


def _through_opening(scene: Scene, point: Array, direction: Array, pixel_angle: float) -> Array:
    """The view through an open side: the sky above the horizon, the same ground going on below it."""
    height = np.clip(direction[2], 0, 1) ** np.float32(0.6)
    image = _HORIZON * (1 - height) + _ZENITH * height
    down = np.flatnonzero(direction[2] < -1e-3)
    if down.size:
        ground = scene.room.material("floor")
        at = point[:, down] + point[2, down] / -direction[2, down] * direction[:, down]
        away = at - scene.size[:, None] / 2
        distance = np.sqrt(dot(away, away))
        factor = texture(ground.texture, at[0], at[1], ground.period, distance * np.float32(pixel_angle))
        clear = np.exp(-distance / np.float32(_HAZE_METRES))
        image[:, down] = image[:, down] * (1 - clear) + clear * _albedo(scene.room, ground) * factor
    return image


def _radiance(scene: Scene, origin: Array, direction: Array, pixel_angle: float, bounces: int) -> Array:
    """Light that arrives along each ray, linear RGB (3, N); glossy surfaces mirror up to ``bounces`` times."""
    hits = scene.trace(origin, direction)
    colour, glow, gloss = _surface_colour(scene, hits, pixel_angle)
    image = colour * (_incident_light(scene, hits) + glow)
    is_open = np.array(
        [scene.room.surfaces[name] == "open" for name in SURFACE_ORDER] + [False] * len(scene.lower)
    )
    beyond = np.flatnonzero(is_open[hits.target])
    if beyond.size:
        image[:, beyond] = _through_opening(scene, hits.point[:, beyond], direction[:, beyond], pixel_angle)
    mirror = np.flatnonzero(gloss > 0.03) if bounces else np.array([], dtype=np.intp)
    if mirror.size:
        normal = hits.normal()[:, mirror]
        incoming = direction[:, mirror]
        cosine = -dot(incoming, normal)
        grazing = (1 - np.clip(cosine, 0, 1)) ** 5  # Schlick's approximation, damped: floors are not polished
        share = gloss[mirror] + np.float32(0.6) * (1 - gloss[mirror]) * grazing
        start = hits.point[:, mirror] + np.float32(2e-3) * normal
        reflected = _radiance(scene, start, incoming + 2 * cosine * normal, pixel_angle, bounces - 1)
        image[:, mirror] = image[:, mirror] * (1 - share) + share * reflected
    return image


def render(room: Room, camera: Camera, size: int) -> NDArray[np.uint8]:
    """The picture, shape (size, size, 3), sRGB. About 0.2 s of one core at 256 pixels."""
    from PIL import Image

    tiles = -(-int(size * _SUPERSAMPLING) // TILE)
    fine = tiles * TILE
    origin = np.array(camera.position, np.float32)
    forward = np.array(camera.target, np.float32) - origin
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, np.array([0, 0, 1], np.float32))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half = np.float32(np.tan(np.radians(camera.field_of_view / 2)))
    steps = ((np.arange(fine, dtype=np.float32) + np.float32(0.5)) / fine * 2 - 1) * half
    across, down = steps * right[:, None], steps * up[:, None]
    direction = forward[:, None, None] + across[:, None, :] - down[:, :, None]
    direction = direction.reshape(3, tiles, TILE, tiles, TILE).swapaxes(2, 3).reshape(3, -1)
    direction /= np.sqrt(dot(direction, direction))
    linear = np.float32(1.35) * _radiance(
        Scene(room), origin[:, None], direction, float(2 * half / fine), bounces=1
    )
    exposed = (
        linear * (1 + linear / 6) / (1 + np.float32(0.55) * linear)
    )  # bright lamps roll off instead of clipping
    encoded = np.clip(exposed, 0, 1) ** np.float32(1 / 2.2)
    rows = encoded.reshape(3, tiles, tiles, TILE, TILE).swapaxes(2, 3).reshape(3, fine, fine)
    pixels = (rows.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX))
