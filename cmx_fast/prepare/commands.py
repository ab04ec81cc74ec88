"""``cmx prepare``: tables and files of data sets; what reads them is imported once a command is called."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from cmx_fast.data.sets.recordings import left_out
from cmx_fast.prepare.unpacked import Unpacked

#: The CSIR paper tests on 1,647 of 11,854 pairs.
TEST_SHARE = 1647 / 11854

Out = Annotated[Path, typer.Option(help="Folder for the tables; an empty or a new one.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same division.")]
Overwrite = Annotated[bool, typer.Option(help="Write anew the tables that the folder holds.")]
ValShare = Annotated[float, typer.Option(help="Share of the validation part, to choose settings by.")]
TestShare = Annotated[float, typer.Option(help="Share of the test part.")]
Speech = Annotated[Path, typer.Option(help="Folder of dry speech, at any depth: WAV, FLAC, OGG or SPHERE.")]
Speaker = Annotated[
    str,
    typer.Option(
        help="Who speaks in a file: folder (its folder's name), wsj0, librispeech, or a regular expression whose "
        "groups are found in the file's path below --speech."
    ),
]

FilesOut = Annotated[Path, typer.Option(help="Folder for the files and their table, files.csv.")]


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
    from cmx_fast.data.sets.image2reverb import MANIFEST, SPLITS, read_indoor
    from cmx_fast.data.sets.lists import read_table
    from cmx_fast.prepare.image2reverb import overlap, pool, redivide
    from cmx_fast.prepare.parts import check_free, check_shares, speech_counts, write_tables
    from cmx_fast.prepare.speech import speech_rows

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


def prepare_rooms(
    photographs: Annotated[
        Path, typer.Option(help="Photographs, KIND/*.jpg or {train,val,test}/KIND/*.jpg.")
    ],
    responses: Annotated[Path, typer.Option(help="Folder of impulse responses.")],
    table: Annotated[Path, typer.Option(help="CSV of the responses: name, space, and perhaps place.")],
    speech: Speech,
    out: Out,
    speaker: Speaker = "folder",
    kinds: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the columns kind, photographs (folders) and responses (spaces), names joined by +; without "
            "it a folder and a space of the same name are a kind."
        ),
    ] = None,
    share_responses: Annotated[
        bool,
        typer.Option(
            "--share-responses", help="Use every response in all parts; pictures and speakers differ."
        ),
    ] = False,
    pairs: Annotated[
        int, typer.Option(min=0, help="Most pairs of a kind in a part; 0: every photograph.")
    ] = 0,
    val_share: ValShare = 0.2,
    test_share: TestShare = 0.25,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Pair photographs and impulse responses of the same kind of room, and hold out some of each and some speakers.

    Every photograph makes a pair with one of its kind's responses, all equally often. No photograph, no speaker and,
    without --share-responses, no place with its responses is in two parts. Responses without photographs teach the
    speech encoder, and test its RT60. Writes manifest.csv with RT60 measured, speech.csv and prepared.json;
    cmx train csir --data reads them. Files stay where they are.
    """
    from cmx_fast.data.sets.image2reverb import SPLITS
    from cmx_fast.prepare.parts import check_free, check_shares, speech_counts, write_tables
    from cmx_fast.prepare.rooms import (
        Kind,
        pair_kinds,
        pairing_table,
        read_kinds,
        read_photographs,
        read_responses,
    )
    from cmx_fast.prepare.speech import speech_rows

    check_shares(val_share, test_share)
    check_free(out, overwrite)
    spoken, silent = speech_rows(speech, speaker, val_share, test_share, seed)
    pictures, no_pictures = read_photographs(photographs)
    airs, no_airs = read_responses(responses, table)
    if kinds is None:
        equal = {name for of in pictures.values() for name in of} & {response.space for response in airs}
        wanted = [Kind(name, (name,), (name,)) for name in sorted(equal)]
    else:
        wanted = read_kinds(kinds)
    pairing = pair_kinds(
        wanted,
        pictures,
        airs,
        share_responses=share_responses,
        most=pairs,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
    )
    alone = {
        part: {row["air"] for row in pairing.rows if row["split"] == part and not row["image"]}
        for part in SPLITS
    }
    unknown = [response.air.name for response in airs if math.isnan(response.rt60)]
    summary = {
        "seed": seed,
        "responses": "shared by all parts" if share_responses else "held out by place",
        "kinds": {
            name: {part: {"pairs": n, "responses": m} for part, (n, m) in of.items()}
            for name, of in pairing.counts.items()
        },
        "speech": speech_counts(spoken),
        "responses without photographs": {part: len(files) for part, files in alone.items()},
        "responses of unknown RT60": unknown,
        "not used": pairing.unused,
    }
    write_tables(out, pairing.rows, spoken, summary)
    say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    for name, skipped in (("photographs", no_pictures), ("responses", no_airs), ("speech", silent)):
        if skipped:
            say(f"{name}{left_out(skipped)}")
    if unknown:
        say(f"{len(unknown)} responses of unknown RT60: {', '.join(unknown)}")
    if pairing.alone:
        say(f"{len(pairing.alone)} responses have no photographs, and are heard alone")
    if pairing.unused:
        say(f"not used: {'; '.join(pairing.unused)}")
    Console().print(pairing_table(pairing.counts))


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
