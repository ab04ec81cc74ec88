"""``cmx prepare shards`` and ``cmx prepare huggingface``: packed data sets as files and a table to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from cmx_fast.data.sets.recordings import left_out
from cmx_fast.prepare.unpacked import Unpacked

FilesOut = Annotated[Path, typer.Option(help="Folder for the files and their table, files.csv.")]


def prepare_shards(
    shards: Annotated[Path, typer.Option(help="Folder of tar shards in webdataset's convention, or one.")],
    out: FilesOut,
) -> None:
    """Unpack the pictures, sounds and videos of tar shards, and write files.csv, which --data takes.

    A sample's label is its member cls, or the entry "label" of its json; its part is the word that the shard's name, or
    its folder's, begins with: train, val, test. Without one, parts follow from the files' names. Shards that break off
    are named, and what came before is kept.
    """
    from cmx_fast.prepare.shards import find_shards, unpack_shard

    unpacked = Unpacked(out)
    found = find_shards(shards)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        for shard in progress.track(found, description="shards"):
            unpack_shard(shard, unpacked)
    _finish(unpacked, console)


def prepare_huggingface(
    dataset: Annotated[
        Path, typer.Option(help="Local folder of a data set: written by save_to_disk, or downloaded.")
    ],
    out: FilesOut,
) -> None:
    """Write the pictures, sounds and videos of a Hugging Face data set as files, and files.csv, which --data takes.

    A sample's label is its column label or class; its part is its split. Nothing is downloaded.
    """
    from cmx_fast.prepare.huggingface import open_splits, unpack_split

    unpacked = Unpacked(out)
    splits = open_splits(dataset, out / ".cache")
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("samples", total=sum(len(split) for split in splits.values()))
        for name, split in splits.items():
            unpack_split(name, split, unpacked, lambda: progress.advance(task))
    _finish(unpacked, console)


def _finish(unpacked: Unpacked, console: Console) -> None:
    """Write the table, and say what it holds and what was left out."""
    table = unpacked.finish()
    text = f"{table}: {len(unpacked.rows)} files{left_out(unpacked.skipped)}"
    console.print(text, highlight=False, soft_wrap=True)
