"""The index of a folder of files: their embeddings, and the nearest of them to a query.

embeddings.npy   float32 (N, D), unit rows
files.csv        kind and path of each row
index.json       the run, model and seed that embedded them
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmx_fast.data.media.files import BrokenFileError
from cmx_fast.evaluate.retrieval import rank
from cmx_fast.networks.weights import read_json
from cmx_fast.search.embedders import KINDS, Embedder, kind_of

#: Broken files that are named; the rest are counted.
NAMED = 5


@dataclass(frozen=True)
class Index:
    """Embedded files.

    Attributes:
        embeddings: (N, D) float32, unit rows. files: (N,) paths. kinds: (N,) of :data:`KINDS`.
        run, model, seed: of the embedder, for the queries.
    """

    embeddings: Tensor
    files: tuple[Path, ...]
    kinds: tuple[str, ...]
    run: Path
    model: str | None
    seed: int | None

    def nearest(self, query: Tensor, top: int, kinds: Iterable[str]) -> list[tuple[int, float]]:
        """Rows and cosines of the ``top`` files of some kinds that are nearest to a unit vector (D,), best first.

        Raises:
            ValueError: the index has no file of these kinds, or ``top`` is below 1.
        """
        wanted = set(kinds)
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        rows = torch.tensor([row for row, kind in enumerate(self.kinds) if kind in wanted], dtype=torch.int64)
        if not len(rows):
            raise ValueError(f"the index has no file of the kinds {', '.join(sorted(wanted))}")
        nearest = rows[rank(query[None], self.embeddings[rows], top)[0]]
        return [(int(row), float(self.embeddings[row] @ query)) for row in nearest]

    def write(self, folder: Path) -> None:
        """Write the index into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "embeddings.npy", self.embeddings.numpy())
        with open(folder / "files.csv", "w", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows(
                [("kind", "path"), *zip(self.kinds, map(str, self.files), strict=True)]
            )
        about = {"run": str(self.run), "model": self.model, "seed": self.seed, "files": len(self.files)}
        (folder / "index.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path | str) -> Index:
        """Read an index.

        Raises:
            ValueError: the folder holds none, or one whose files don't belong together.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise ValueError(f"{folder} holds no index: make one with cmx embed --out {folder}")
        about = read_json(folder / "index.json")
        try:
            embeddings = torch.from_numpy(np.load(folder / "embeddings.npy"))
            with open(folder / "files.csv", newline="", errors="surrogateescape") as file:
                rows = list(csv.reader(file))[1:]
            kinds, files = zip(*rows, strict=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is damaged ({error}); make it again with cmx embed --out {folder}"
            ) from error
        if embeddings.dim() != 2 or len(embeddings) != len(files) or about.get("files") != len(files):
            raise ValueError(
                f"{folder} is damaged: {len(embeddings)} embeddings of {len(files)} files; make it again with cmx "
                f"embed --out {folder}"
            )
        run, model, seed = Path(about["run"]), about["model"], about["seed"]
        return cls(embeddings, tuple(map(Path, files)), kinds, run, model, seed)


def find_files(folders: Iterable[Path], kinds: Iterable[str]) -> tuple[list[tuple[Path, str]], Counter[str]]:
    """Files of some kinds below the folders, with their kinds, in the order of their paths; and the others' suffixes.

    Raises:
        ValueError: a folder is not there, or holds no file of these kinds; names what it holds.
    """
    wanted, found = set(kinds), []
    others: Counter[str] = Counter()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            kind = kind_of(path)
            if kind in wanted:
                found.append((path.absolute(), kind))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if not found:
        held = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "nothing"
        suffixes = ", ".join(suffix for kind in sorted(wanted) for suffix in KINDS[kind])
        raise ValueError(f"no file with one of the suffixes {suffixes} in the folders; there is {held}")
    return found, others


def left_out(broken: list[tuple[Path, str]], others: Counter[str]) -> list[str]:
    """The lines that say which files were left out: the first broken ones by name, the other kinds by number."""
    lines = [f"left out: {path}: {reason}" for path, reason in broken[:NAMED]]
    if len(broken) > NAMED:
        lines.append(f"left out: {len(broken) - NAMED} more broken files")
    if others:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(NAMED))
        lines.append(f"not looked at: {counted}")
    return lines


def embed_files(
    embedder: Embedder, files: Iterable[tuple[Path, str]], advance: Callable[[], None] = lambda: None
) -> tuple[Tensor, list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Embed files; those that can't be decoded are left out.

    Returns:
        The embeddings (N, D), the files and kinds that they are of, and the files left out with the reasons.

    Raises:
        ValueError: none could be decoded; names some.
    """
    rows, embedded, broken = [], [], []
    for path, kind in files:
        try:
            rows.append(embedder.embed(path, kind))
            embedded.append((path, kind))
        except BrokenFileError as error:
            broken.append((path, error.reason))
        advance()
    if not rows:
        named = "; ".join(f"{path}: {reason}" for path, reason in broken[:3])
        raise ValueError(f"none of the {len(broken)} files can be used ({named})")
    return torch.stack(rows), embedded, broken
