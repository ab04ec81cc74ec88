"""Opens the embedder of a finished run, whichever system it is of."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from torch import Tensor

from cmx_fast.data.media.suffixes import PICTURES, SOUNDS, VIDEOS
from cmx_fast.networks.weights import read_json

#: The kinds of files that are searched, by suffix.
KINDS = {"image": PICTURES, "audio": SOUNDS, "video": VIDEOS}
#: The embedder of each command that trains a system.
EMBEDDERS = {
    "train cmac": "cmx_fast.systems.cmac.embedder:CMACEmbedder",
    "train csir": "cmx_fast.systems.csir.embedder:CSIREmbedder",
    "train sound2scene": "cmx_fast.systems.sound2scene.embedder:Sound2SceneEmbedder",
}


class Embedder(Protocol):
    """Files as unit vectors of one space, whatever their kind.

    Attributes:
        kinds: those of :data:`KINDS` that it embeds.
    """

    kinds: tuple[str, ...]

    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a file, float32 on the CPU.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        ...


def open_embedder(run: Path | str, *, model: str | None = None, seed: int | None = None) -> Embedder:
    """Open the embedder of a finished run folder, on the GPU if there is one.

    Args:
        model: the trained model's name; default the run's first.
        seed: one of the run's seeds; default its first.

    Raises:
        ValueError: no run, one that is not finished, or one of a system that does not embed files; or it has no such
            model or seed.
    """
    run = Path(run)
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} holds no run: there is no config.json in it")
    command = read_json(file).get("command")
    if command not in EMBEDDERS:
        raise ValueError(
            f"{run} is a run of cmx {command}, which does not embed files; those of "
            f"{', '.join(f'cmx {name}' for name in EMBEDDERS)} do"
        )
    module, name = EMBEDDERS[command].split(":")
    embedder: Embedder = getattr(importlib.import_module(module), name).from_run(run, model=model, seed=seed)
    return embedder


def kind_of(file: Path) -> str | None:
    """The kind of a file by its suffix, or None."""
    suffix = file.suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
