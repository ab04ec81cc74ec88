"""Options of CMAC's commands, each worded once, and the check of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.data.sets.own_files import SHARES
from cmx_fast.data.sets.video_sets import KINETICS_SPLITS, held_out
from cmx_fast.options import words

#: The models in Table 1's order, with their names in the report and in tables.
NAMES = {
    "scratch": ("Random weights", "scratch"),
    "single": ("Single modality", "single"),
    "attention": ("CMAC without L_cl", "w/o L_cl"),
    "contrast": ("CMAC without L_ac", "w/o L_ac"),
    "cmac": ("CMAC", "CMAC"),
}
#: Models that ``cmx evaluate linear`` knows without training, and the ways in which it pools an encoder's maps.
UNTRAINED, POOLS = ("scratch", "log-mel"), ("mean", "bands", "levels")

Models = Annotated[
    list[str],
    typer.Option(help=f"Model: {', '.join(NAMES)}, or all; repeatable.", autocompletion=words(*NAMES, "all")),
]
CMACRun = Annotated[Path, typer.Option(help="Run folder of cmx train cmac.")]
RunSeed = Annotated[int | None, typer.Option(help="Seed of the run's model; default: its first.")]
DataFolder = Annotated[Path, typer.Option(help="Folder of the data set.")]
Fold = Annotated[
    int,
    typer.Option(help="Fold of ucf101, hmdb51 (1 to 3), esc50 or dcase2013 (1 to 5); 0: the mean of all."),
]
Model = Annotated[str, typer.Option(help="Model of the run.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Part that is measured: val, the default where there is one, to choose settings by; or test.",
        autocompletion=words("val", "test"),
    ),
]
MostRecordings = Annotated[
    int, typer.Option(min=0, help="Most recordings of a split that evaluation looks at; 0: all.")
]
#: The splits of the data sets that have others than "train" and "test".
SPLITS = {"kinetics": KINETICS_SPLITS, "folder": tuple(SHARES)}


def split_of(dataset: str, split: str | None) -> str:
    """The split of a data set that is measured: ``split``, or the one that is held out.

    Raises:
        ValueError: the data set has no such split to measure.
    """
    if split is None:
        return held_out(dataset)
    known = [name for name in SPLITS.get(dataset, ("train", "test")) if name != "train"]
    if split not in known:
        raise ValueError(f"split must be {' or '.join(known)} for {dataset}; got {split!r}")
    return split


def check_evaluation(evaluate: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError for an extent of evaluation that is none of these."""
    if evaluate not in choices:
        raise ValueError(f"evaluate must be {', '.join(choices[:-1])} or {choices[-1]}; got {evaluate!r}")
