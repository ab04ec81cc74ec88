"""Opens the embedder of a finished run, whichever system it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from cmx_fast.data.media.suffixes import PICTURES, SOUNDS, VIDEOS
from cmx_fast.train.trained_model import open_trained

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


def open_embedder(
    run: Path | str,
    *,
    model: str | None = None,
    seed: int | None = None,
    encoder_file: Path | None = None,
    device: str | None = None,
) -> Embedder:
    """Open the embedder of a finished run folder.

    Raises:
        as :func:`cmx_fast.train.trained_model.open_trained`, whose arguments it has.
    """
    embedder: Embedder = open_trained(
        run, EMBEDDERS, "embed files", model=model, seed=seed, encoder_file=encoder_file, device=device
    )
    return embedder


def kind_of(file: Path) -> str | None:
    """The kind of a file by its suffix, or None."""
    suffix = file.suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
