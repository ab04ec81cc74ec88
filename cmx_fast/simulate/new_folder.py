"""The folder that a simulated set is written to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill within the block, which then becomes ``out``: an interrupted run leaves nothing that looks
    complete.

    Raises:
        ValueError: ``out`` holds something and ``overwrite`` is off.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"out: {out} is not empty; choose another folder or pass --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "set"
        folder.mkdir()
        yield folder
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
