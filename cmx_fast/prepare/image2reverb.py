"""The CSIR paper's division of Image2Reverb, as tables beside the published files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cmx_fast.data.media.files import BrokenFileError, audio_problem, check_enough_left, picture_problem
from cmx_fast.data.sets.image2reverb import (
    SPLITS,
    files_of_pairs,
)
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.prepare.parts import (
    generator,
)
from cmx_fast.prepare.responses import DecayTimes, digest


@dataclass(frozen=True)
class PooledPair:
    """A pair of the published set, whichever of its parts it came from, with the content of its files."""

    image: Path
    air: Path
    space: str
    rt60: float
    image_content: str
    air_content: str


def pool(root: Path) -> tuple[list[PooledPair], list[tuple[Path, str]]]:
    """The usable pairs of all published parts, and (file, reason) of what is left out.

    Raises:
        ValueError: no part is there, or more than half of the pairs can't be used.
    """
    parts = [part for part in SPLITS if (root / f"{part}_A").is_dir()]
    if not parts:
        raise ValueError(
            f"data: {root} has none of train_A, val_A, test_A; expected Image2Reverb as published"
        )
    found = [files_of_pairs(root, part) for part in parts]
    skipped = [entry for part in found for entry in (*part.others, *part.alone)]
    listed = [pair for part in found for pair in part.pairs]
    decay_times, pooled, broken = DecayTimes(), [], []
    for image, air, space in track(listed, "Measuring responses", console=Console(stderr=True)):
        problem = next(
            (
                (file, text)
                for file, text in ((image, picture_problem(image)), (air, audio_problem(air)))
                if text
            ),
            None,
        )
        if problem is None:
            try:
                rt60 = decay_times.of(air)
            except BrokenFileError as error:
                problem = error.path, error.reason
        if problem is None:
            pooled.append(PooledPair(image, air, space, rt60, digest(image), digest(air)))
        else:
            broken.append(problem)
    check_enough_left(broken, len(broken), len(listed))
    if not pooled:
        raise ValueError(f"data: {root} has no usable pairs{left_out(skipped)}")
    return pooled, skipped + broken


def redivide(pairs: list[PooledPair], val_share: float, test_share: float, seed: int) -> list[str]:
    """The part of each pair: every space is divided at random, and keeps a pair to train on.

    The parts have the whole set's share of pairs to one: what rounding takes from one space, another gets.
    """
    by_space: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        by_space[pair.space].append(number)
    parts = ["train"] * len(pairs)
    owed = dict.fromkeys(("test", "val"), 0.0)
    for space in sorted(by_space):
        order = [by_space[space][i] for i in generator(seed, space).permutation(len(by_space[space]))]
        size = len(order)
        for part, share in (("test", test_share), ("val", val_share)):
            owed[part] += share * size
            for _ in range(min(round(owed[part]), len(order) - 1)):
                parts[order.pop()] = part
                owed[part] -= 1
    return parts


def overlap(pairs: list[PooledPair], parts: list[str]) -> dict[str, dict[str, int]]:
    """For each held-out part: its pairs, and those whose picture, response or both are in the training, too."""
    seen = [pair for pair, part in zip(pairs, parts, strict=True) if part == "train"]
    images, airs = {pair.image_content for pair in seen}, {pair.air_content for pair in seen}
    counts: dict[str, dict[str, int]] = {}
    for part in SPLITS[1:]:
        held = [pair for pair, p in zip(pairs, parts, strict=True) if p == part]
        if held:
            image = [pair.image_content in images for pair in held]
            air = [pair.air_content in airs for pair in held]
            counts[part] = {
                "pairs": len(held),
                "picture in training": sum(image),
                "response in training": sum(air),
                "both in training": sum(a and b for a, b in zip(image, air, strict=True)),
            }
    return counts
