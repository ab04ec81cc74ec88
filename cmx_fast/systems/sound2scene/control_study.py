"""Whether Sound2Scene's controls do what they are for: what a judge sees in the pictures as a control is turned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmx_fast.systems.sound2scene.controls import change_volume, edit, interpolate
from cmx_fast.systems.sound2scene.model import Sound2Scene

#: Pairs of scenes of different classes that each control is tried on.
PAIRS = 64
#: Pairs whose pictures are kept.
SHOWN = 3
WEIGHTS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
#: Decibels of the first and of the second sound of a mixture.
BALANCES = ((0, -40), (0, -20), (0, -10), (0, 0), (-10, 0), (-20, 0), (-40, 0))
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)
VOLUMES = (-40, -30, -20, -10, 0, 10)


@dataclass(frozen=True)
class Turned:
    """One control.

    Attributes:
        setting: what is turned, and ``values`` its positions.
        since, to: mean probability of the class that it leads away from and to, at each position.
        right: share of the pairs in which ``to`` is higher at the end than at the start; 0.5 by chance.
        strips: pictures of some pairs, (pairs, positions, 3, S, S), with their (class since, class to).
    """

    setting: str
    values: list[str]
    since: list[float]
    to: list[float]
    right: float
    strips: Tensor
    classes: list[tuple[int, int]]


@dataclass(frozen=True)
class Couples:
    """Scenes in pairs of different classes: each one's wave (N, samples), picture features (N, D) and class (N,)."""

    waves: tuple[Tensor, Tensor]
    pictures: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]


def couples(waves: Tensor, pictures: Tensor, labels: Tensor) -> Couples:
    """Up to PAIRS pairs, drawn by a fixed seed.

    Raises:
        ValueError: all scenes are of one class.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(labels), (2, 64 * PAIRS), generator=generator)
    differ = (labels[one] != labels[other]).nonzero()[:PAIRS, 0]
    if not len(differ):
        raise ValueError("the held-out scenes are all of one class: controls need two")
    sides = one[differ], other[differ]
    return Couples(*(tuple(of[side] for side in sides) for of in (waves, pictures, labels)))  # type: ignore[arg-type]


def study(system: Sound2Scene, judge: Callable[[Tensor], Tensor], of: Couples) -> dict[str, Turned]:
    """Every control on the same pairs, each pair with a noise of its own at all positions.

    ``judge`` maps pictures (N, 3, S, S) in [0, 1] to probabilities (N, classes).
    """
    first, second = of.waves
    sounds = [system.of_sound(wave) for wave in of.waves]
    noise = system.noise(len(first), seed=1)

    def turn(setting: str, values: Sequence[str], features: list[Tensor]) -> Turned:
        made = torch.stack([system.generate(h, noise) for h in features], 1)
        seen = torch.stack([judge(pictures) for pictures in made.unbind(1)], 1)
        since, to = (
            seen.gather(2, labels[:, None, None].expand(-1, len(values), 1))[..., 0] for labels in of.labels
        )
        return Turned(
            setting,
            list(values),
            since.mean(0).tolist(),
            to.mean(0).tolist(),
            float((to[:, -1] > to[:, 0]).double().mean()),
            made[:SHOWN].cpu(),
            [(int(a), int(b)) for a, b in zip(*(labels[:SHOWN] for labels in of.labels), strict=True)],
        )

    return {
        "interpolation": turn(
            "weight of the picture",
            [f"{w:g}" for w in WEIGHTS],
            [interpolate(of.pictures[0], sounds[1], w) for w in WEIGHTS],
        ),
        "mixing": turn(
            "volume of the first and the second sound, dB",
            [f"{a}, {b}" for a, b in BALANCES],
            [
                system.of_sound((change_volume(first, a) + change_volume(second, b)).clamp(-1, 1))
                for a, b in BALANCES
            ],
        ),
        "editing": turn(
            "strength",
            [f"{s:g}" for s in STRENGTHS],
            [edit(of.pictures[0], sounds[1], sounds[0], s) for s in STRENGTHS],
        ),
    }


def volumes(system: Sound2Scene, waves: Tensor) -> Tensor:
    """Pictures of waves (N, samples) at each of VOLUMES, (N, volumes, 3, S, S)."""
    noise = system.noise(len(waves), seed=2)
    made = [system.generate(system.of_sound(change_volume(waves, v)), noise) for v in VOLUMES]
    return torch.stack(made, 1).cpu()
