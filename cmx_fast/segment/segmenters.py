"""Opens the segmenter of a finished run, whichever system it is of."""

from __future__ import annotations

from pathlib import Path

from cmx_fast.train.picture_segmenter import PictureSegmenter
from cmx_fast.train.trained_model import open_trained

#: The segmenter of each command that trains one.
SEGMENTERS = {
    "train c2l": "cmx_fast.systems.c2l.segmenter:C2LSegmenter",
    "train segment": "cmx_fast.systems.recognition.segmenter:RecognitionSegmenter",
}


def open_segmenter(
    run: Path | str,
    *,
    model: str | None = None,
    seed: int | None = None,
    encoder_file: Path | None = None,
    device: str | None = None,
) -> PictureSegmenter:
    """Open the segmenter of a finished run folder.

    Raises:
        as :func:`cmx_fast.train.trained_model.open_trained`, whose arguments it has.
    """
    segmenter: PictureSegmenter = open_trained(
        run, SEGMENTERS, "segment pictures", model=model, seed=seed, encoder_file=encoder_file, device=device
    )
    return segmenter
