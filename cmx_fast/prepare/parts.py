"""Divides what a data set has into training, validation and test parts, and writes the tables that say so."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cmx_fast.data.sets.image2reverb import MANIFEST, SPEECH_TABLE, SPLITS
from cmx_fast.data.sets.lists import write_table

#: The files that a prepared set has.
TABLES = ("manifest.csv", "speech.csv", "prepared.json")


def check_shares(val_share: float, test_share: float) -> None:
    """
    Raises:
        ValueError: a share is below 0, the test's is 0, or nothing is left to train on.
    """
    if val_share < 0 or test_share <= 0 or val_share + test_share >= 1:
        raise ValueError(
            f"val_share ({val_share}) must be 0 or more, test_share ({test_share}) above 0, and both below 1 together"
        )


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the seed and a name, not on what else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(os.fsencode(name))])


def divide(
    names: Sequence[str], val_share: float, test_share: float, rng: np.random.Generator
) -> dict[str, str] | None:
    """The part ("train", "val" or "test") of each name, drawn at random.

    Parts whose share is not 0 get at least one name. None where there are fewer names than such parts.
    """
    wanted = {"test": test_share, "val": val_share}
    sizes = {part: max(1, round(share * len(names))) for part, share in wanted.items() if share > 0}
    if sum(sizes.values()) >= len(names):
        sizes = dict.fromkeys(sizes, 1)
    if len(names) < 1 + len(sizes):
        return None
    order = [names[i] for i in rng.permutation(len(names))]
    parts = dict.fromkeys(order, "train")
    for part, size in sizes.items():
        for _ in range(size):
            parts[order.pop()] = part
    return parts


def check_free(out: Path, overwrite: bool) -> None:
    """
    Raises:
        ValueError: the folder holds tables and ``overwrite`` is off, or ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; choose a folder")
    held = [out / table for table in TABLES if (out / table).exists()]
    if held and not overwrite:
        raise ValueError(f"out: {held[0]} is there already; choose another folder or pass --overwrite")


def write_tables(
    out: Path,
    pairs: Iterable[Mapping[str, str]],
    spoken: Iterable[Mapping[str, str]],
    summary: Mapping[str, object],
) -> None:
    """Write the :data:`TABLES`: pairs in the order of their parts, speech, and the counts of both."""
    out.mkdir(parents=True, exist_ok=True)
    by_part = sorted(pairs, key=lambda row: SPLITS.index(row["split"]))
    write_table(out / "manifest.csv", MANIFEST, by_part)
    write_table(out / "speech.csv", SPEECH_TABLE, spoken)
    (out / "prepared.json").write_text(json.dumps(summary, indent=2) + "\n")


def speech_counts(spoken: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Sentences and speakers of each part."""
    spoken = list(spoken)
    return {
        part: {"sentences": len(rows), "speakers": len({row["speaker"] for row in rows})}
        for part in SPLITS
        if (rows := [row for row in spoken if row["split"] == part])
    }
