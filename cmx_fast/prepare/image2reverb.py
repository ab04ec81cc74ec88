"""``cmx prepare image2reverb``: the CSIR paper's division of Image2Reverb, as tables beside the published files."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from cmx_fast.data.media.files import BrokenFileError, audio_problem, check_enough_left, picture_problem
from cmx_fast.data.sets.image2reverb import (
    MANIFEST,
    SPLITS,
    files_of_pairs,
    read_indoor,
)
from cmx_fast.data.sets.lists import read_table
from cmx_fast.data.sets.recordings import left_out
from cmx_fast.prepare.parts import (
    Out,
    Overwrite,
    Seed,
    TestShare,
    ValShare,
    check_free,
    check_shares,
    generator,
    speech_counts,
    write_tables,
)
from cmx_fast.prepare.responses import DecayTimes, digest
from cmx_fast.prepare.speech import Speaker, Speech, speech_rows

#: The paper tests on 1,647 of 11,854 pairs.
TEST_SHARE = 1647 / 11854


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


def prepare_image2reverb(
    data: Annotated[Path, typer.Option(help="Image2Reverb as published: {train,val,test}_{A,B}.")],
    speech: Speech,
    out: Out,
    speaker: Speaker = "folder",
    indoor: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns space and indoor (1 or 0), for the table's columns."),
    ] = None,
    val_share: ValShare = 0.0,
    test_share: TestShare = TEST_SHARE,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Pool Image2Reverb's pairs, divide them anew within each space, and divide dry speech by speaker.

    Writes manifest.csv with RT60 measured once, speech.csv, and prepared.json with the counts: among them how many test
    pairs share their picture or their response with the training. Files stay where they are; unusable ones are left out
    and named.
    """
    check_shares(val_share, test_share)
    flags = (
        {}
        if indoor is None
        else {row["space"]: read_indoor(row) for row in read_table(indoor, ("space", "indoor"))}
    )
    check_free(out, overwrite)
    spoken, silent = speech_rows(speech, speaker, val_share, test_share, seed)
    pairs, skipped = pool(Path(data))
    parts = redivide(pairs, val_share, test_share, seed)
    flag = {True: "1", False: "0", None: ""}
    rows = []
    for pair, part in zip(pairs, parts, strict=True):
        files = str(pair.image.resolve()), str(pair.air.resolve())
        values = (*files, pair.space, flag[flags.get(pair.space)], f"{pair.rt60:.3f}", part)
        rows.append(dict(zip(MANIFEST, values, strict=True)))
    spaces = sorted({pair.space for pair in pairs})
    counts = {
        "seed": seed,
        "pairs": {part: parts.count(part) for part in SPLITS if part in parts},
        "spaces": len(spaces),
        "indoor": sum(flags.get(space) is True for space in spaces),
        "outdoor": sum(flags.get(space) is False for space in spaces),
        "pictures": len({pair.image_content for pair in pairs}),
        "responses": len({pair.air_content for pair in pairs}),
        "responses of unknown RT60": len({pair.air_content for pair in pairs if math.isnan(pair.rt60)}),
        "overlap": overlap(pairs, parts),
        "speech": speech_counts(spoken),
        "left out": len(skipped) + len(silent),
    }
    write_tables(out, rows, spoken, counts)
    say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    say(f"pairs{left_out(skipped)}" if skipped else "pairs: all usable")
    say(f"speech{left_out(silent)}" if silent else "speech: all usable")
    unflagged = [space for space in spaces if flags.get(space) is None]
    if unflagged:
        say(
            f"{len(unflagged)} of {len(spaces)} spaces are neither indoors nor outdoors (--indoor); their queries "
            f"count in the total alone: {', '.join(unflagged[:5])}"
        )
    Console(highlight=False, soft_wrap=True).print_json(json.dumps(counts))
