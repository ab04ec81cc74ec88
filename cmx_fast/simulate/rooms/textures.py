"""Procedural textures: the brightness of a material at each point of a surface."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 throughout, for speed


def _hash(i: Array, j: Array, salt: int = 0) -> Array:
    """A repeatable number in 0..1 for each lattice cell (i, j)."""
    mixed = i.astype(np.int32).astype(np.uint32) * np.uint32(374761393)
    mixed += j.astype(np.int32).astype(np.uint32) * np.uint32(668265263) + np.uint32(salt * 974711)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    return ((mixed ^ (mixed >> np.uint32(16))) & np.uint32(0xFFFF)).astype(np.float32) / np.float32(65535)


def _noise(u: Array, v: Array, salt: int = 0) -> Array:
    """Smooth value noise in 0..1 with one feature per unit."""
    i, j = np.floor(u), np.floor(v)
    s, t = u - i, v - j
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    low = _hash(i, j, salt) * (1 - s) + _hash(i + 1, j, salt) * s
    high = _hash(i, j + 1, salt) * (1 - s) + _hash(i + 1, j + 1, salt) * s
    return low * (1 - t) + high * t


def _joint(position: Array, width: float) -> Array:
    """A map that is 1 in joints of ``width`` (share of a period) around whole numbers, else 0."""
    phase = position - np.floor(position)
    return ((phase < width / 2) | (phase > 1 - width / 2)).astype(np.float32)


def _plain(u: Array, v: Array) -> Array:
    return 0.97 + 0.06 * _noise(u * 1.5, v * 1.5)


def _brick(u: Array, v: Array) -> Array:
    row = v * 3.2
    along = u + 0.5 * np.mod(np.floor(row), 2)
    tone = 0.78 + 0.36 * _hash(np.floor(along), np.floor(row))
    mortar = np.maximum(_joint(along, 0.06), _joint(row, 0.17))
    return tone * (1 - mortar) + 1.25 * mortar


def _block(u: Array, v: Array) -> Array:
    row = v * 1.9
    along = u + 0.5 * np.mod(np.floor(row), 2)
    tone = 0.88 + 0.16 * _hash(np.floor(along), np.floor(row)) + 0.08 * _noise(u * 9, v * 9)
    return tone * (1 - 0.35 * np.maximum(_joint(along, 0.03), _joint(row, 0.05)))


def _concrete(u: Array, v: Array) -> Array:
    cloud = 0.6 * _noise(u * 1.3, v * 1.3) + 0.3 * _noise(u * 5, v * 5, 1) + 0.1 * _noise(u * 23, v * 23, 2)
    return (0.78 + 0.42 * cloud) * (1 - 0.3 * np.maximum(_joint(u, 0.012), _joint(v, 0.012)))


def _checker(u: Array, v: Array) -> Array:
    dark = np.mod(np.floor(u) + np.floor(v), 2)
    vein = np.abs(_noise(u * 3, v * 3) - 0.5) < 0.04
    return 1.05 - 0.45 * dark - 0.08 * vein


def _tile(u: Array, v: Array) -> Array:
    tone = 0.95 + 0.08 * _hash(np.floor(u), np.floor(v))
    return tone * (1 - 0.45 * np.maximum(_joint(u, 0.08), _joint(v, 0.08)))


def _corrugated(u: Array, v: Array) -> Array:
    return 0.85 + 0.25 * np.sin(2 * np.pi * u) - 0.15 * _joint(v * 0.1, 0.01)


def _pane(u: Array, v: Array) -> Array:
    frame = np.maximum(_joint(u, 0.07), _joint(v, 0.07))
    return (0.95 + 0.1 * _noise(u, v)) * (1 - 0.65 * frame)


def _ripple(u: Array, v: Array) -> Array:
    return 0.8 + 0.5 * _noise(u * 2 + 0.7 * _noise(v * 3, u * 3), v * 2)


def _speckle(u: Array, v: Array) -> Array:
    return 0.84 + 0.32 * _hash(np.floor(u), np.floor(v))


def _plank(u: Array, v: Array) -> Array:
    row = np.floor(v)
    along = u * 0.1 + 0.37 * np.mod(row, 3)
    tone = 0.80 + 0.32 * _hash(np.floor(along), row) + 0.08 * _noise(u * 0.8, v * 6)
    return tone * (1 - 0.5 * np.maximum(_joint(v, 0.06), _joint(along, 0.006)))


def _grain(u: Array, v: Array) -> Array:
    return 0.86 + 0.26 * _noise(u * 0.6, v * 9)


def _frame(u: Array, v: Array) -> Array:
    return (0.95 + 0.08 * _noise(u, v * 6)) * (
        1 - 0.4 * np.maximum(_joint(u + 0.1, 0.07), _joint(v + 0.1, 0.07))
    )


def _pile(u: Array, v: Array) -> Array:
    return 0.80 + 0.25 * _noise(u, v) + 0.15 * _noise(u * 0.07, v * 0.07, 3)


def _fold(u: Array, v: Array) -> Array:
    return 0.75 + 0.32 * np.sin(2 * np.pi * u + 2 * _noise(u * 0.4, v * 0.1))


def _books(u: Array, v: Array) -> Array:
    row = v / 7
    tone = 0.35 + 1.3 * _hash(np.floor(u), np.floor(row), 5)
    shelf = _joint(row, 0.14)
    return tone * (1 - shelf) + 0.8 * shelf


def _ceiling_tile(u: Array, v: Array) -> Array:
    dots = _hash(np.floor(u * 14), np.floor(v * 14)) > 0.72
    return (1 - 0.12 * dots) * (1 - 0.28 * np.maximum(_joint(u, 0.05), _joint(v, 0.05)))


def _perforated(u: Array, v: Array) -> Array:
    holes = (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.06
    return 1 - 0.55 * holes


def _wedge(u: Array, v: Array) -> Array:
    turned = np.mod(np.floor(u) + np.floor(v), 2)
    return 0.55 + 0.9 * np.abs(np.mod(np.where(turned > 0, u, v) * 3, 1) - 0.5) * 2


def _panel(u: Array, v: Array) -> Array:
    gap = np.maximum(_joint(u, 0.035), _joint(v, 0.035))
    return (0.88 + 0.2 * _noise(u * 40, v * 40)) * (1 - 0.6 * gap)


def _facade(u: Array, v: Array) -> Array:
    return (
        (0.92 + 0.12 * _noise(u * 3, v * 3)) * (1 - 0.25 * _joint(v, 0.05)) * (1 - 0.06 * _joint(u * 4, 0.08))
    )


def _leaves(u: Array, v: Array) -> Array:
    return 0.55 + 0.6 * _noise(u, v) + 0.3 * _noise(u * 3, v * 3, 1)


def _art(u: Array, v: Array) -> Array:
    return 0.5 + 1.1 * _noise(u * 2, v * 2, 7)


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": _plain, "brick": _brick, "block": _block, "concrete": _concrete, "checker": _checker, "tile": _tile,
    "corrugated": _corrugated, "pane": _pane, "ripple": _ripple, "speckle": _speckle, "plank": _plank,
    "grain": _grain, "frame": _frame, "pile": _pile, "fold": _fold, "books": _books,
    "ceiling tile": _ceiling_tile, "perforated": _perforated, "wedge": _wedge, "panel": _panel,
    "facade": _facade, "leaves": _leaves, "art": _art,
}  # fmt: skip


def texture(name: str, u: Array, v: Array, period: float, footprint: Array) -> Array:
    """The brightness factor (around 1) of texture ``name`` at (u, v) metres.

    Where a pixel's ``footprint`` (metres) nears the texture's period, the contrast fades to the texture's mean
    instead of aliasing.
    """
    factor = TEXTURES[name](u / np.float32(period), v / np.float32(period)).astype(np.float32)
    keep = np.clip(1.6 - 3.2 * footprint / np.float32(period), 0, 1)
    mean = factor.mean() if factor.size else np.float32(1)
    return factor * keep + mean * (1 - keep)
