"""Reads tar shards in webdataset's convention: members of one name up to its first dot are one sample."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cmx_fast.prepare.unpacked import MEDIA, Unpacked

#: Endings of shards.
SHARDS = (".tar", ".tar.gz", ".tgz")
#: The part that a shard's name, or its folder's, begins with.
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

#: Members of a sample by their endings.
Sample = dict[str, bytes]


def find_shards(place: Path) -> list[Path]:
    """The shards below a folder, sorted, or the one that ``place`` is.

    Raises:
        ValueError: there are none.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    shards = [file for file in files if file.name.endswith(SHARDS) and file.is_file()]
    if not shards:
        raise ValueError(f"shards: no {', '.join(SHARDS)} files in {place}")
    return shards


def unpack_shard(shard: Path, unpacked: Unpacked) -> None:
    """Write a shard's pictures, sounds and videos; a shard that breaks off is named, its samples before that kept."""
    split = part_of(shard)
    try:
        for key, sample in samples(shard):
            try:
                label = label_of(sample)
            except ValueError as error:
                unpacked.skipped.append((shard / key, str(error)))
                continue
            for ending, content in sample.items():
                suffix = "." + ending.rsplit(".", 1)[-1].lower()
                if suffix in MEDIA:
                    name = f"{shard.name.split('.')[0]}/{key}.{ending}"
                    unpacked.write(name, content, label=label, split=split)
    except (tarfile.TarError, EOFError, OSError) as error:
        unpacked.skipped.append((shard, f"breaks off ({error})"))


def samples(shard: Path) -> Iterator[tuple[str, Sample]]:
    """Name and members of each sample, in the shard's order; members of a sample follow one another."""
    key, sample = "", Sample()
    with tarfile.open(shard, "r|*") as archive:
        for member in archive:
            if not member.isfile():
                continue
            path = PurePosixPath(member.name)
            stem, _, ending = path.name.partition(".")
            name = str(path.parent / stem)
            if name != key and sample:
                yield key, sample
                sample = Sample()
            stream = archive.extractfile(member)
            assert stream is not None  # of a file there is one
            key, sample[ending] = name, stream.read()
    if sample:
        yield key, sample


def label_of(sample: Sample) -> str:
    """The class that ``cls`` or the entry "label" of ``json`` names; empty where there is neither.

    Raises:
        ValueError: either is not what its ending says.
    """
    try:
        if "cls" in sample:
            return sample["cls"].decode().strip()
        entries = json.loads(sample.get("json", b"{}"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its label can't be read ({error})") from error
    label = entries.get("label", "") if isinstance(entries, dict) else ""
    return str(label)


def part_of(shard: Path) -> str:
    """The part that a shard's name says, or its folder's: "train-000.tar", "val/000.tar"; else empty."""
    for name in (shard.name, shard.parent.name):
        word = re.match(r"[a-z]+", name.lower())
        if word and word[0] in _PARTS:
            return _PARTS[word[0]]
    return ""
