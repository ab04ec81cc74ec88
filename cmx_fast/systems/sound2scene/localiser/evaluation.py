"""Measures a localiser on pictures with boxes: its own sounds, and sounds that nothing in the picture makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmx_fast.data.loaders.scene_batches import SceneData
from cmx_fast.data.sets.sounding_objects import SoundingObjects
from cmx_fast.evaluate.localisation import (
    answers,
    best_threshold,
    consensus,
    consensus_iou,
    enlarge,
    larger_half,
    success,
)
from cmx_fast.evaluate.summary import new_table
from cmx_fast.systems.sound2scene.localiser.model import Localiser

#: Sounds that nothing in the picture makes, as IS3+ has them: none, noise as loud as the own sound, another
#: recording's.
NEGATIVES = ("silence", "noise", "off-screen")
#: The rows of the table. The second map is highest in the picture's middle, whatever sounds.
NAMES = {"localiser": "Localiser (LVS)", "middle": "the picture's middle"}
#: Pictures, and sounds, per batch.
BATCH = 64
#: Pictures whose maps are shown.
SHOWN = 8


@dataclass
class Example:
    """A picture that no threshold was chosen on, uint8 (3, S, S), with its boxes (n, 4) and the localiser's maps.

    ``maps`` (h, w) by sound: "own" and each of NEGATIVES.
    """

    name: str
    picture: Tensor
    boxes: Tensor
    maps: dict[str, Tensor]


@dataclass
class Localisation:
    """The figures of one set.

    Attributes:
        pictures: all that could be read, of which "cIoU" and "AUC" are.
        validation: those of them that the thresholds were chosen on; the other figures are of the rest.
        thresholds: by row.
        figures: by row, of :func:`cmx_fast.evaluate.localisation.success` and ``answers``.
        examples: of the rest, evenly spaced.
    """

    pictures: int
    validation: int
    thresholds: dict[str, float]
    figures: dict[str, dict[str, float]]
    examples: list[Example]

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocol": "cIoU and AUC: the half of each map above its median, all pictures; hits and negatives: what "
            "reaches one threshold, chosen on own sounds of the validation pictures, the other pictures",
            "pictures": self.pictures,
            "validation": self.validation,
            "thresholds": self.thresholds,
            "figures": self.figures,
        }


def measure(localiser: Localiser, objects: SoundingObjects, data: SceneData, share: float) -> Localisation:
    """Measure a localiser, and the map of the middle, on the scenes of ``objects`` that can be read.

    Args:
        data: the same scenes, whole pictures.
        share: of the pictures, drawn at random by a fixed seed, that the threshold is chosen on.

    Raises:
        ValueError: ``share`` leaves no picture on one side.
    """
    rows, maps = sound_maps(localiser, data)
    truth = [consensus(objects.boxes[row], objects.agreeing) for row in rows.tolist()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise ValueError(f"validation = {share} of {len(rows)} pictures leaves none on one side")
    chosen, rest = order[:count].sort().values, order[count:].sort().values
    middle = _middle().expand(len(rows), -1, -1)
    thresholds, figures = {}, {}
    for name, by_sound in (("localiser", maps), ("middle", dict.fromkeys(maps, middle))):
        own = by_sound["own"]
        ious = torch.cat(
            [
                consensus_iou(larger_half(enlarge(own[part])), torch.stack([truth[i] for i in part.tolist()]))
                for part in torch.arange(len(own)).split(BATCH)
            ]
        )
        thresholds[name] = best_threshold(own[chosen], [truth[i] for i in chosen.tolist()])
        negatives = {kind: by_sound[kind][rest] for kind in NEGATIVES}
        figures[name] = success(ious) | answers(
            own[rest], [truth[i] for i in rest.tolist()], negatives, thresholds[name]
        )
    shown = rest[torch.linspace(0, len(rest) - 1, min(SHOWN, len(rest))).round().long()]
    return Localisation(
        len(rows), count, thresholds, figures, list(_examples(shown.tolist(), rows, maps, objects, data))
    )


def _examples(
    places: list[int], rows: Tensor, maps: dict[str, Tensor], objects: SoundingObjects, data: SceneData
) -> Iterator[Example]:
    """The scenes at these places of ``rows`` and ``maps``, which are read again."""
    place_of = {int(rows[place]): place for place in places}
    for scenes, pictures in data.pictures([rows[places]]):
        for scene, picture in zip(scenes.tolist(), pictures, strict=True):
            by_sound = {kind: maps[kind][place_of[scene]] for kind in maps}
            yield Example(objects.scenes.entries[scene].name, picture.cpu(), objects.boxes[scene], by_sound)


@torch.no_grad()
def sound_maps(localiser: Localiser, data: SceneData) -> tuple[Tensor, dict[str, Tensor]]:
    """The scenes (N,) that can be read, and the maps (N, h, w) of their pictures: "own" and each of NEGATIVES."""
    device = next(localiser.parameters()).device
    localiser.eval()
    sounds: dict[str, dict[int, Tensor]] = {"own": {}, "noise": {}}
    for scenes, waves in data.sounds(torch.arange(len(data)).split(BATCH)):
        noisy = torch.stack([_noise(wave, scene) for wave, scene in zip(waves, scenes.tolist(), strict=True)])
        for kind, batch in (("own", waves), ("noise", noisy)):
            encoded = localiser.encode_sound(batch.to(device)).cpu()
            sounds[kind] |= dict(zip(scenes.tolist(), encoded, strict=True))
    silence = localiser.encode_sound(torch.zeros(1, waves.shape[1], device=device))[0].cpu()
    heard = torch.tensor(sorted(sounds["own"]))
    other = dict(zip(heard.tolist(), off_screen(data.labels[heard]).tolist(), strict=True))
    rows: list[int] = []
    maps: dict[str, list[Tensor]] = {kind: [] for kind in ("own", *NEGATIVES)}
    for scenes, pictures in data.pictures(heard.split(BATCH)):
        encoded = localiser.encode_picture(pictures.to(device) / 255)
        for kind in maps:
            of_kind = [
                silence
                if kind == "silence"
                else sounds["own"][int(heard[other[scene]])]
                if kind == "off-screen"
                else sounds[kind][scene]
                for scene in scenes.tolist()
            ]
            cosines = torch.einsum("bdhw,bd->bhw", encoded, torch.stack(of_kind).to(device))
            maps[kind].append(cosines.float().cpu())
        rows += scenes.tolist()
    return torch.tensor(rows), {kind: torch.cat(parts) for kind, parts in maps.items()}


def off_screen(labels: Tensor) -> Tensor:
    """For each scene of these classes (N,) the row of another one: of another class, if there is one. (N,) int64.

    Raises:
        ValueError: a single scene.
    """
    count = len(labels)
    if count < 2:
        raise ValueError(f"off-screen sounds take at least 2 recordings; {count} can be read")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    classes = labels.tolist()
    chosen = torch.empty(count, dtype=torch.int64)
    for place, row in enumerate(order):
        following = (order[(place + step) % count] for step in range(1, count))
        others = (other for other in following if classes[other] != classes[row])
        chosen[row] = next(others, order[(place + 1) % count])
    return chosen


def _noise(wave: Tensor, scene: int) -> Tensor:
    """White noise as loud as the wave (samples,), the same for a scene."""
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(scene))
    return (noise * wave.square().mean().sqrt()).clamp(-1, 1)


def _middle() -> Tensor:
    """A map (14, 14) of 0 in the middle and less around it."""
    offset = torch.linspace(-1, 1, 14)
    return -torch.hypot(offset[:, None], offset[None, :])


def tables(result: Localisation) -> list[Table]:
    """The figures for a terminal, in per cent: own sounds, then the sounds of nothing in the picture."""
    rest = result.pictures - result.validation
    own = new_table(
        f"{result.pictures} pictures, %; hits: cIoU of at least 0.5 under one threshold, {rest} pictures",
        ("cIoU@0.5", "AUC", "hits"),
    )
    others = new_table(
        f"sounds of nothing in the picture, {rest} pictures, %; below own: the map peaks lower than with its own sound",
        ("false positives", "area", "F1", "below own"),
    )
    for row, figures in result.figures.items():
        own.add_row(NAMES[row], *(f"{100 * figures[name]:.1f}" for name in ("cIoU", "AUC", "hits")))
        for kind in NEGATIVES:
            columns = (f"{kind} {name}" for name in ("false positives", "area", "F1", "below own"))
            others.add_row(f"{NAMES[row]}, {kind}", *(f"{100 * figures[column]:.1f}" for column in columns))
    return [own, others]
