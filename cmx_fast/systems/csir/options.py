"""Options of CSIR's commands, each worded once, and the names of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import Sets, words

#: The models with their names in the report.
NAMES = {
    "csir": "CSIR",
    "dscmr": "DSCMR",
    "classifiers": "Image classifier + speech classifier",
    "rt60": "RT60 alone",
}
#: The parts of the data that are measured.
HELD_OUT = ("test", "val")

Models = Annotated[
    list[str], typer.Option(help=f"Model: {', '.join(NAMES)}; repeatable.", autocompletion=words(*NAMES))
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Samples of a step of the last stage, of all processes together: as --set cross_batch=N. The other stages "
        "have speech_batch, image_batch and head_batch."
    ),
    Sets("cross_batch"),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Learning rate of the last stage: as --set cross_lr=X. The others have speech_lr, image_lr and head_lr; "
        "its encoders encoder_lr.",
    ),
    Sets("cross_lr"),
]
Speech = Annotated[
    Path | None,
    typer.Option(help="Dry sentences, <split>/**/*.wav; default DATA/speech.csv, then DATA/speech."),
]
Split = Annotated[
    str,
    typer.Option(
        help="Part that is measured: test, or val to choose settings by without looking at the test.",
        autocompletion=words(*HELD_OUT),
    ),
]
