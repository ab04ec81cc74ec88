"""Draws people part by part, picture and mask from the same outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmx_fast.simulate.people.fabrics import (
    Colour,
    Surface,
    clutter,
    colour,
    patterned,
    plain,
    shade,
    skin,
    woven,
)
from cmx_fast.simulate.people.pose import (
    LEFT,
    RIGHT,
    SIDES,
    Body,
    Outline,
    disc,
    draw_body,
    limb,
    part_way,
    torso,
)

# ATR's numbers.
HAT, HAIR, SUNGLASSES, UPPER, SKIRT, PANTS, DRESS, BELT = 1, 2, 3, 4, 5, 6, 7, 8
SHOE = {LEFT: 9, RIGHT: 10}
FACE = 11
LEG = {LEFT: 12, RIGHT: 13}
ARM = {LEFT: 14, RIGHT: 15}
BAG, SCARF = 16, 17

#: Pixels of the canvas per pixel of the picture.
OVERSAMPLING = 3
#: Height over width of a picture, and of the person over the picture's.
ASPECT = 2.0
PERSON = (0.86, 0.98)
NOISE = 3.0  # of the camera, in 0 to 255


@dataclass
class Canvas:
    """A picture and its labels in the making; outlines come in body units."""

    surface: Surface
    labels: NDArray[np.uint8]
    unit: float
    origin: NDArray[np.float64]
    light: NDArray[np.float64]  # (h, w), brightness over the picture

    def paint(self, outlines: list[Outline], surface: Surface, label: int) -> None:
        """Lay a surface within the outlines, darker towards its edges, and label it."""
        height, width = self.labels.shape
        stencil = Image.new("L", (width, height))
        draw = ImageDraw.Draw(stencil)
        for outline in outlines:
            draw.polygon([tuple(point) for point in outline * self.unit + self.origin], fill=255)
        covered = np.asarray(stencil) > 0
        if not covered.any():
            return
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        # Round like a cylinder: the middle between a row's ends is nearest.
        place = np.linspace(-1, 1, columns[-1] - columns[0] + 1)[None, :]
        shade = (1.06 - 0.22 * place**2) * self.light[box]
        inside = covered[box]
        self.surface[box][inside] = (surface[box] * shade[..., None])[inside]
        self.labels[box][inside] = label


def render_person(rng: np.random.Generator, size: int) -> tuple[Image.Image, Image.Image]:
    """A picture (width ``size``, height 2 ``size``) of one person and its indexed mask of ATR's labels 0 to 17."""
    width, height = size * OVERSAMPLING, round(size * ASPECT) * OVERSAMPLING
    unit = height * rng.uniform(*PERSON) / 8
    shape = (height, width)
    y, x = np.mgrid[:height, :width] / height
    slope = rng.normal(0, 0.12, 2)
    light = np.clip(rng.uniform(0.92, 1.05) + slope[0] * (x - 0.33) + slope[1] * (y - 0.5), 0.5, 1.4)
    free = height - 8 * unit
    origin = np.array([width / 2 + rng.normal(0, 0.05) * width, free * rng.uniform(0.2, 0.8) + 0.15 * unit])
    behind = shade(rng)
    canvas = Canvas(
        clutter(rng, shape, unit, behind) * light[..., None], np.zeros(shape, np.uint8), unit, origin, light
    )
    _paint_person(canvas, draw_body(rng), rng, behind)
    noisy = (canvas.surface + rng.normal(0, NOISE, canvas.surface.shape)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(noisy).reduce(OVERSAMPLING)
    middle = OVERSAMPLING // 2
    return picture, Image.fromarray(canvas.labels[middle::OVERSAMPLING, middle::OVERSAMPLING])


def _paint_person(canvas: Canvas, body: Body, rng: np.random.Generator, behind: Colour) -> None:
    """Paint from back to front: hair behind, legs, clothes below, shoes, clothes above, arms, head, accessories.

    ``behind`` is the background's colour.
    """
    shape, build = canvas.labels.shape, body.build
    above = shade(rng, behind)
    below = shade(rng, behind, above)
    flesh = plain(rng, shape, skin(rng))
    hair = plain(rng, shape, colour(rng, hue=(0.02, 0.12), saturation=(0.45, 0.85), value=(0.3, 0.85)), 8)
    long_hair, dress = rng.random() < 0.4, rng.random() < 0.15
    cloth_above = patterned(rng, shape, canvas.unit, above)
    if long_hair:
        canvas.paint([disc(body.head + np.array([0, 0.45]), 0.56, 0.95)], hair, HAIR)
    _paint_legs(canvas, body, rng, flesh, dress, below, behind)
    canvas.paint([disc(body.neck + np.array([0, -0.1]), 0.26, 0.5)], flesh, FACE)
    hem = rng.uniform(1.1, 2.0) if dress else rng.uniform(0.15, 0.55)
    canvas.paint([torso(body, hem, 0.35 if dress else 0.0)], cloth_above, DRESS if dress else UPPER)
    if rng.random() < 0.3:
        low = body.waist + np.array([0, 0.0 if dress else hem - 0.06])
        belt = plain(rng, shape, shade(rng, above, below))
        outline = np.array([[-0.8, -0.09], [0.8, -0.09], [0.8, 0.09], [-0.8, 0.09]]) * [build, 1] + low
        canvas.paint([outline], belt, BELT)
    sleeve = rng.choice([0.25, 0.45, 0.92, 0.92])
    widths = (0.5 * build, 0.4 * build, 0.32 * build)
    for side in SIDES:
        hand = body.arms[side][2] + 0.12 * (body.arms[side][2] - body.arms[side][1])
        canvas.paint([*limb(body.arms[side], (0.36, 0.3, 0.22)), disc(hand, 0.17, 0.2)], flesh, ARM[side])
        covered = part_way(body.arms[side], sleeve)
        canvas.paint(limb(covered, widths[: len(covered)]), cloth_above, DRESS if dress else UPPER)
    _paint_head(canvas, body, rng, flesh, hair)
    if rng.random() < 0.15:
        scarf = patterned(rng, shape, 0.6 * canvas.unit, shade(rng, above))
        neck = body.neck + np.array([0, 0.05])
        canvas.paint([disc(neck, 0.55, 0.24), disc(neck + np.array([0.2, 0.55]), 0.17, 0.6)], scarf, SCARF)
    if rng.random() < 0.25:
        side = SIDES[rng.integers(2)]
        bag = plain(rng, shape, shade(rng, behind), 3)
        hung = body.arms[side][2] + np.array([side * 0.1, 0.7])
        corners = np.array([[-0.45, -0.4], [0.45, -0.4], [0.55, 0.45], [-0.55, 0.45]])
        canvas.paint([corners + hung], bag, BAG)


def _paint_legs(
    canvas: Canvas,
    body: Body,
    rng: np.random.Generator,
    flesh: Surface,
    dress: bool,
    below: Colour,
    behind: Colour,
) -> None:
    shape, build = canvas.labels.shape, body.build
    cloth = woven(rng, shape, canvas.unit, below)
    shoe = plain(rng, shape, shade(rng, behind, below), 3)
    # Tights cover most legs that no cloth covers.
    legs = flesh if rng.random() < 0.2 else plain(rng, shape, shade(rng, behind), 3)
    skirt = not dress and rng.random() < 0.25
    reach = rng.choice([0.35, 0.97, 0.97, 0.97])
    for side in SIDES:
        canvas.paint(limb(body.legs[side], (0.62 * build, 0.44, 0.26)), legs, LEG[side])
        ankle = body.legs[side][2]
        foot = [disc(ankle + np.array([side * 0.1, 0.14]), 0.34, 0.19), disc(ankle, 0.2, 0.2)]
        canvas.paint(foot, shoe, SHOE[side])
        if not dress and not skirt:
            covered = part_way(body.legs[side], reach)
            widths = (0.86 * build, 0.66 * build, 0.52 * build)[: len(covered)]
            canvas.paint(limb(covered, widths), cloth, PANTS)
    hips = body.waist
    if skirt:
        length, flare = rng.uniform(1.1, 2.6), rng.uniform(0.1, 0.5)
        top, bottom = 0.78 * build, 0.85 * build + flare
        outline = np.array([[-top, -0.1], [top, -0.1], [bottom, length], [-bottom, length]]) + hips
        canvas.paint([outline], cloth, SKIRT)
    elif not dress:
        canvas.paint(
            [np.array([[-0.78, -0.1], [0.78, -0.1], [0.84, 0.7], [-0.84, 0.7]]) * [build, 1] + hips],
            cloth,
            PANTS,
        )


def _paint_head(canvas: Canvas, body: Body, rng: np.random.Generator, flesh: Surface, hair: Surface) -> None:
    head = body.head
    canvas.paint([disc(head, 0.43, 0.56)], flesh, FACE)
    # The upper part of the skull: from the left temple over the crown to the right one.
    fringe = rng.uniform(-0.35, 0.1)
    canvas.paint(
        [disc(head + np.array([0, -0.1]), 0.5, 0.58, np.pi - fringe, 2 * np.pi + fringe)], hair, HAIR
    )
    dark = plain(rng, canvas.labels.shape, np.array([25.0, 20.0, 20.0]))
    for side in SIDES:
        canvas.paint([disc(head + np.array([side * 0.17, 0.02]), 0.06, 0.035)], dark, FACE)
    canvas.paint([disc(head + np.array([0, 0.3]), 0.13, 0.035)], 0.6 * flesh, FACE)
    if rng.random() < 0.15:
        for side in SIDES:
            canvas.paint([disc(head + np.array([side * 0.18, 0.0]), 0.17, 0.13)], dark, SUNGLASSES)
    if rng.random() < 0.2:
        felt = plain(rng, canvas.labels.shape, shade(rng), 3)
        brim = head + np.array([0, -0.28])
        crown = disc(brim, 0.5, 0.55, np.pi, 2 * np.pi)
        canvas.paint([crown, disc(brim, rng.uniform(0.5, 0.8), 0.1)], felt, HAT)
