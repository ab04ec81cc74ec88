"""Makes the sounds of simulated clips: every visible property of an object can be heard."""

from __future__ import annotations

import numpy as np

from cmx_fast.simulate.clips.objects import HUES, LARGEST, SHAPES, MovingObject

#: Class -> loudness of the multiples of the pitch. With the pitch's glide it tells the classes apart.
TIMBRES = {
    "disc": ((1, 1.0),),
    "ring": ((1, 0.6), (2, 1.0), (4, 0.5)),
    "square": ((1, 1.0), (3, 0.6), (5, 0.4), (7, 0.3)),
    "triangle": ((1, 1.0), (2, 0.7), (3, 0.6), (4, 0.5), (5, 0.4), (6, 0.3)),
    "star": ((1, 0.8), (2.76, 1.0), (5.4, 0.7)),
    "cross": ((1, 1.0), (1.5, 0.9), (2.25, 0.6)),
    "bar": ((0.5, 1.0), (1, 0.5), (1.02, 0.5)),
    "crescent": ((1, 0.4), (6, 0.8), (7, 1.0), (8, 0.8)),
}
assert TIMBRES.keys() == SHAPES.keys()

LOWEST, OCTAVES = 160.0, 3.5  # of the pitches, by hue
GLIDE = 1.0  # octaves from the lower edge to the upper
LOUDEST = 0.5


def pitch(thing: MovingObject, seconds: np.ndarray, height: int) -> np.ndarray:
    """The pitch in hertz, by the object's hue and height in the frame."""
    _, y = thing.position(seconds)
    return LOWEST * 2 ** (OCTAVES * thing.hue / HUES + GLIDE * (0.5 - y / height))


def sound(
    thing: MovingObject,
    generator: np.random.Generator,
    seconds: float,
    sample_rate: int,
    width: int,
    height: int,
    largest: float = LARGEST,
) -> np.ndarray:
    """The object's sound, float32 (samples,) in [-1, 1].

    Shape is heard as timbre, hue and height as pitch, size as loudness, the beat as the beat, and the place from left
    to right as hiss. Faint noise lies beneath.
    """
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(pitch(thing, time, height)) / sample_rate
    total = sum(level for _, level in TIMBRES[thing.shape])
    tone = sum(level * np.sin(multiple * phase) for multiple, level in TIMBRES[thing.shape]) / total
    noise = generator.standard_normal(len(time))
    x, _ = thing.position(time)
    hiss = 0.35 * (x / width) * np.diff(noise, prepend=0.0) / 2
    loudness = (
        LOUDEST * (thing.radius / (largest * min(width, height))) ** 2 * (0.1 + 0.9 * thing.strength(time))
    )
    mixed = loudness * (0.8 * tone + hiss) + 0.002 * noise
    return np.clip(mixed, -1, 1).astype(np.float32)
