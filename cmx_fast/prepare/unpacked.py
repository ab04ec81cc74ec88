"""Writes the files of a packed data set below a folder, with the table that the training commands take."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cmx_fast.data.media.suffixes import PICTURES, SOUNDS, VIDEOS
from cmx_fast.data.sets.lists import write_table

#: The table of the files, and its columns.
TABLE, COLUMNS = "files.csv", ("path", "label", "split")
MEDIA = (*PICTURES, *SOUNDS, *VIDEOS)


class Unpacked:
    """A folder that is being filled.

    Attributes:
        rows: a row of :data:`COLUMNS` for each file written.
        skipped: (name, reason) of what could not be.

    Raises:
        ValueError: the folder holds a table already.
    """

    def __init__(self, out: Path):
        if (out / TABLE).exists():
            raise ValueError(f"out: {out / TABLE} is there already; choose another folder")
        self.out = out
        self.rows: list[dict[str, str]] = []
        self.skipped: list[tuple[Path, str]] = []

    def write(self, name: str, content: bytes, *, label: str, split: str) -> None:
        """Write a file at ``name`` below the folder; a name that leads out of it, or comes twice, is skipped."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            self.skipped.append((Path(name), "its name leads out of the folder"))
            return
        file = self.out / path
        if file.exists():
            self.skipped.append((Path(name), "there is a file of that name already"))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.rows.append({"path": str(path), "label": label, "split": split})

    def finish(self) -> Path:
        """Write the table.

        Raises:
            ValueError: no file was written.
        """
        if not self.rows:
            named = "".join(f"; {path}: {reason}" for path, reason in self.skipped[:3])
            raise ValueError(f"no picture, sound or video to write to {self.out}{named}")
        table = self.out / TABLE
        write_table(table, COLUMNS, self.rows)
        return table
