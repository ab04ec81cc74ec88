"""Measures Sound2Scene's controls by a judge's probabilities of the class that each leaves and the class it seeks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmx_fast.systems.sound2scene.controls import change_volume, edit, interpolate
from cmx_fast.systems.sound2scene.model import Sound2Scene

#: Pairs of scenes of different classes on which each control is measured.
PAIRS = 64
#: Pairs whose pictures are kept.
SHOWN = 3
WEIGHTS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
#: Volumes of a mixture's first and second sound in decibels.
BALANCES = ((0, -40), (0, -20), (0, -10), (0, 0), (-10, 0), (-20, 0), (-40, 0))
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)
VOLUMES = (-40, -30, -20, -10, 0, 10)


@dataclass(frozen=True)
class ControlEffect:
    """The effect of one control on pairs of scenes.

    Attributes:
        setting: the control's name.
        values: its positions.
        since, to: mean probability, at each position, of the class that it leads away from and of the one it leads to.
        right: share of the pairs in which ``to`` is higher at the end than at the start; 0.5 by chance.
        strips: pictures of some pairs, (pairs, positions, 3, S, S).
        classes: of each strip, the class that the control leads away from and the one it leads to.
    """

    setting: str
    values: list[str]
    since: list[float]
    to: list[float]
    right: float
    strips: Tensor
    classes: list[tuple[int, int]]


@dataclass(frozen=True)
class ScenePairs:
    """Pairs of scenes of different classes: each side's waves (N, samples), picture features (N, D), classes (N,)."""

    waves: tuple[Tensor, Tensor]
    pictures: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]


def scene_pairs(waves: Tensor, pictures: Tensor, labels: Tensor) -> ScenePairs:
    """Draw up to PAIRS pairs of scenes by a fixed seed.

    Raises:
        ValueError: all scenes are of one class.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(labels), (2, 64 * PAIRS), generator=generator)
    differ = (labels[one] != labels[other]).nonzero()[:PAIRS, 0]
    if not len(differ):
        raise ValueError("the held-out scenes are all of one class: controls need two")
    sides = one[differ], other[differ]
    return ScenePairs(*(tuple(values[side] for side in sides) for values in (waves, pictures, labels)))  # type: ignore[arg-type]


def study(
    system: Sound2Scene, judge: Callable[[Tensor], Tensor], pairs: ScenePairs
) -> dict[str, ControlEffect]:
    """Measure every control on the same pairs; a pair has a noise of its own, the same at all positions.

    ``judge`` maps pictures (N, 3, S, S) in [0, 1] to probabilities (N, classes).
    """
    first, second = pairs.waves
    sounds = [system.encode_sound(wave) for wave in pairs.waves]
    noise = system.noise(len(first), seed=1)

    def effect(setting: str, values: Sequence[str], features: list[Tensor]) -> ControlEffect:
        pictures = torch.stack([system.generate(h, noise) for h in features], 1)
        probabilities = torch.stack([judge(position) for position in pictures.unbind(1)], 1)
        since, to = (
            probabilities.gather(2, labels[:, None, None].expand(-1, len(values), 1))[..., 0]
            for labels in pairs.labels
        )
        return ControlEffect(
            setting,
            list(values),
            since.mean(0).tolist(),
            to.mean(0).tolist(),
            float((to[:, -1] > to[:, 0]).double().mean()),
            pictures[:SHOWN].cpu(),
            [(int(a), int(b)) for a, b in zip(*(labels[:SHOWN] for labels in pairs.labels), strict=True)],
        )

    return {
        "interpolation": effect(
            "weight of the picture",
            [f"{w:g}" for w in WEIGHTS],
            [interpolate(pairs.pictures[0], sounds[1], w) for w in WEIGHTS],
        ),
        "mixing": effect(
            "volume of the first and the second sound, dB",
            [f"{a}, {b}" for a, b in BALANCES],
            [
                system.encode_sound((change_volume(first, a) + change_volume(second, b)).clamp(-1, 1))
                for a, b in BALANCES
            ],
        ),
        "editing": effect(
            "strength",
            [f"{s:g}" for s in STRENGTHS],
            [edit(pairs.pictures[0], sounds[1], sounds[0], s) for s in STRENGTHS],
        ),
    }


def volumes(system: Sound2Scene, waves: Tensor) -> Tensor:
    """Pictures of waves (N, samples) at each of VOLUMES, (N, volumes, 3, S, S)."""
    noise = system.noise(len(waves), seed=2)
    pictures = [system.generate(system.encode_sound(change_volume(waves, v)), noise) for v in VOLUMES]
    return torch.stack(pictures, 1).cpu()
