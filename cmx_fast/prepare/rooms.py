"""Image-speech pairs from one's own photographs by kind, impulse responses and speech."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from cmx_fast.data.media.files import BrokenFileError, audio_problem, picture_problem
from cmx_fast.data.media.suffixes import PICTURES
from cmx_fast.data.sets.image2reverb import (
    MANIFEST,
    SPEECH,
    SPLITS,
)
from cmx_fast.data.sets.lists import read_table
from cmx_fast.data.sets.recordings import left_out, of_kind
from cmx_fast.prepare.parts import (
    divide,
    generator,
)
from cmx_fast.prepare.responses import DecayTimes

#: Names of folders that divide photographs already.
_DIVIDED = {"train": "train", "val": "val", "test": "test", "eval": "test"}

#: Rows of a response that no photograph belongs to: each has sentences of its own.
HEARD_ALONE = 10

Skipped = list[tuple[Path, str]]


@dataclass(frozen=True)
class Kind:
    """A kind of room: the folders with its photographs and the spaces whose responses it has."""

    name: str
    photographs: tuple[str, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Response:
    """A measured impulse response; responses of one ``place`` never lie in two parts."""

    air: Path
    space: str
    place: str
    rt60: float


def read_kinds(file: Path) -> list[Kind]:
    """The kinds of a CSV with the columns kind, photographs and responses, whose names are joined by ``+``.

    Raises:
        ValueError: see ``read_table``; a name in two kinds, or a kind without names.
    """
    kinds = []
    used: dict[tuple[str, str], str] = {}
    for row in read_table(file, ("kind", "photographs", "responses")):
        sides = {
            side: tuple(name for part in row[side].split("+") if (name := part.strip()))
            for side in ("photographs", "responses")
        }
        for side, names in sides.items():
            if not names:
                raise ValueError(f"{row.where}: kind {row['kind']!r} has no {side}; name them, joined by +")
            for name in names:
                if (side, name) in used:
                    raise ValueError(
                        f"{row.where}: {side} {name!r} belong to kind {used[side, name]!r} already"
                    )
                used[side, name] = row["kind"]
        kinds.append(Kind(row["kind"], **sides))
    return kinds


def read_responses(folder: Path, table: Path) -> tuple[list[Response], Skipped]:
    """The responses of a CSV with the columns name, space and perhaps place, and (file, reason) of unusable ones.

    ``name`` is a file of ``folder``, whose ending may be left out; ``place`` is the name unless given.

    Raises:
        ValueError: see ``read_table``; no response is usable.
    """
    responses, skipped, decay_times = [], [], DecayTimes()
    for row in read_table(table, ("name", "space")):
        named = folder / row["name"]
        endings = ("", *SPEECH)
        air = next((file for end in endings if (file := folder / (row["name"] + end)).is_file()), named)
        problem = audio_problem(air)
        if problem is None:
            try:
                rt60 = decay_times.of(air)
                responses.append(Response(air, row["space"], row.get("place") or row["name"], rt60))
            except BrokenFileError as error:
                problem = error.reason
        if problem is not None:
            skipped.append((air, problem))
    if not responses:
        raise ValueError(f"responses: none that {table} lists is usable{left_out(skipped)}")
    return responses, skipped


def read_photographs(folder: Path) -> tuple[dict[str, dict[str, list[Path]]], Skipped]:
    """``photographs[part][kind]`` of ``<folder>/<kind>`` or ``<folder>/{train,val,test}/<kind>``, and unusable ones.

    The part is "" where the folder doesn't divide them.

    Raises:
        ValueError: no photographs.
    """
    if not folder.is_dir():
        raise ValueError(f"photographs: no folder {folder}")
    own = {part: folder / name for name, part in _DIVIDED.items() if (folder / name).is_dir()}
    parts = own if {"train", "test"} <= own.keys() else {"": folder}
    photographs: dict[str, dict[str, list[Path]]] = {}
    skipped: Skipped = []
    for part, place in parts.items():
        photographs[part] = {}
        for kind in sorted(path for path in place.iterdir() if path.is_dir() and path.name[0] != "."):
            files, others = of_kind(kind, PICTURES, nested=True)
            problems = [(file, picture_problem(file)) for file in files]
            photographs[part][kind.name] = [file for file, problem in problems if problem is None]
            skipped += others + [(file, problem) for file, problem in problems if problem is not None]
    if not any(files for kinds in photographs.values() for files in kinds.values()):
        raise ValueError(
            f"photographs: {folder} has no folder with pictures ({', '.join(PICTURES)}); make a folder for each kind "
            "of room"
        )
    return photographs, skipped


def divide_photographs(
    photographs: dict[str, dict[str, list[Path]]], kind: Kind, val_share: float, test_share: float, seed: int
) -> dict[str, list[Path]] | None:
    """A kind's photographs by part, in random order; None where there are fewer than parts."""
    rng = generator(seed, f"photographs {kind.name}")
    given = {
        part: [f for name in kind.photographs for f in of.get(name, [])] for part, of in photographs.items()
    }
    if "" not in given and (val_share == 0 or "val" in given):
        parts = {part: files for part, files in given.items() if part != "val" or val_share}
        if not all(parts.values()):
            return None
        return {part: [files[i] for i in rng.permutation(len(files))] for part, files in parts.items()}
    undivided = [str(file) for file in given.get("", given.get("train", []))]
    drawn = divide(undivided, val_share, 0.0 if "test" in given else test_share, rng)
    if drawn is None or ("test" in given and not given["test"]):
        return None
    parts = defaultdict(list)
    for file, part in drawn.items():
        parts[part].append(Path(file))
    if "test" in given:
        parts["test"] = [given["test"][i] for i in rng.permutation(len(given["test"]))]
    return dict(parts)


def divide_responses(
    responses: list[Response], name: str, parts: list[str], val_share: float, test_share: float, seed: int
) -> dict[str, list[Response]] | None:
    """The responses by part, divided by place; None where there are fewer places than parts."""
    places = sorted({response.place for response in responses})
    val_share = val_share if "val" in parts else 0.0
    drawn = divide(places, val_share, test_share, generator(seed, f"responses {name}"))
    if drawn is None:
        return None
    return {part: [response for response in responses if drawn[response.place] == part] for part in parts}


def manifest_row(image: Path | None, response: Response, space: str, part: str) -> dict[str, str]:
    """A row of manifest.csv; without an image the response is heard alone."""
    shown = str(image.resolve()) if image else ""
    values = (shown, str(response.air.resolve()), space, "", f"{response.rt60:.3f}", part)
    return dict(zip(MANIFEST, values, strict=True))


@dataclass
class Pairing:
    """The pairs of all kinds, and what is in none of them.

    Attributes:
        rows: of manifest.csv.
        counts: ``counts[kind][part]``, the number of pairs and of responses.
        alone: responses that no photograph belongs to.
        unused: photographs and kinds that are left out, in words.
    """

    rows: list[dict[str, str]]
    counts: dict[str, dict[str, tuple[int, int]]]
    alone: list[Response]
    unused: list[str]


def pair_kinds(
    kinds: list[Kind],
    pictures: dict[str, dict[str, list[Path]]],
    airs: list[Response],
    *,
    share_responses: bool,
    most: int,
    val_share: float,
    test_share: float,
    seed: int,
) -> Pairing:
    """Pair each photograph of a kind with one of its responses of the same part, all equally often.

    Raises:
        ValueError: fewer than two kinds have photographs and responses for every part.
    """
    folders = {name for of in pictures.values() for name in of} - {n for k in kinds for n in k.photographs}
    result = Pairing([], {}, list(airs), [f"photographs {name}" for name in sorted(folders)])
    for kind in kinds:
        own = [response for response in airs if response.space in kind.responses]
        shown = divide_photographs(pictures, kind, val_share, test_share, seed)
        if shown is None:
            result.unused.append(f"kind {kind.name}, too few photographs")
            continue
        parts = [part for part in SPLITS if part in shown]
        if share_responses and own:
            heard: dict[str, list[Response]] | None = dict.fromkeys(parts, own)
        else:
            heard = divide_responses(own, kind.name, parts, val_share, test_share, seed)
        if heard is None:
            result.unused.append(f"kind {kind.name}, responses of fewer places than parts")
            continue
        result.alone = [response for response in result.alone if response not in own]
        result.counts[kind.name] = {}
        for part in parts:
            order = generator(seed, f"pairs {kind.name} {part}").permutation(len(heard[part]))
            images = shown[part][: most or None]
            result.counts[kind.name][part] = len(images), len(heard[part])
            result.rows += [
                manifest_row(image, heard[part][order[number % len(order)]], kind.name, part)
                for number, image in enumerate(images)
            ]
    if len(result.counts) < 2:
        raise ValueError(
            f"{len(result.counts)} kinds have photographs and responses for every part, and two are needed; not used: "
            f"{'; '.join(result.unused)}. Name pairs of kinds with --kinds, or use responses in all parts: "
            "--share-responses"
        )
    parts = [part for part in SPLITS if all(part in of for of in result.counts.values())]
    divided = None
    if not share_responses:
        divided = divide_responses(result.alone, "alone", parts, val_share, test_share, seed)
    for part, responses in (divided or {"train": result.alone}).items():
        for response in responses:
            result.rows += [manifest_row(None, response, response.space, part)] * HEARD_ALONE
    return result


def pairing_table(counts: dict[str, dict[str, tuple[int, int]]]) -> Table:
    """Pairs and responses of each kind by part, for a terminal."""
    table = Table(title="pairs / responses", title_justify="left")
    parts = [part for part in SPLITS if any(part in of for of in counts.values())]
    for column in ("kind", *parts):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, of in counts.items():
        table.add_row(kind, *(" / ".join(map(str, of[part])) for part in parts))
    return table
