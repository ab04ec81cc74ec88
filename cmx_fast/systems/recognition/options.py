"""Options of the commands of recognition, each worded once, and the names of the attention modules that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cmx_fast.data.sets.names import BOXED, LABELLED, MASKED
from cmx_fast.options import words

SEGMENT, CLASSIFY, DETECT = "segment", "classify", "detect"
#: Tasks of the modules that are layers.
BOTH = (SEGMENT, CLASSIFY)
#: The layouts of a task's data.
LAYOUTS = {SEGMENT: (*MASKED, "atr"), CLASSIFY: LABELLED, DETECT: BOXED}


class Attention(NamedTuple):
    """A module of the survey: its name in tables, and the tasks that it is made for."""

    title: str
    tasks: tuple[str, ...]


ATTENTIONS = {
    "none": Attention("none", BOTH),
    "se": Attention("SE", BOTH),
    "cbam": Attention("CBAM", BOTH),
    "non-local": Attention("non-local", BOTH),
    "multi-head": Attention("multi-head", BOTH),
    "residual": Attention("residual", BOTH),
    "danet": Attention("DANet", (SEGMENT,)),
    "ocnet": Attention("OCNet", (SEGMENT,)),
    "ocnet-pyramid": Attention("OCNet, pyramid", (SEGMENT,)),
    "ocnet-asp": Attention("OCNet, ASP", (SEGMENT,)),
    "encnet": Attention("EncNet", (SEGMENT,)),
    "sanet": Attention("SANet", (SEGMENT,)),
    "stn": Attention("STN", (CLASSIFY,)),
    "stn-thin-plate": Attention("STN, thin plate", (CLASSIFY,)),
    "two-level": Attention("two-level", (CLASSIFY,)),
    "recurrent": Attention("recurrent", (CLASSIFY,)),
    "fcan": Attention("FCAN", (CLASSIFY,)),
    "ra-cnn": Attention("RA-CNN", (CLASSIFY,)),
    "ssd": Attention("SSD", (DETECT,)),
    "rpn": Attention("RPN", (DETECT,)),
}

Features = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps a fixed encoder's maps for several runs; default: the run folder's."
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="Pictures to evaluate on: test, or val to choose settings by.",
        autocompletion=words("test", "val"),
    ),
]


def of_task(task: str) -> list[str]:
    """The names of the modules that are made for a task."""
    return [name for name, attention in ATTENTIONS.items() if task in attention.tasks]


def choose_attentions(names: list[str], task: str) -> list[str]:
    """The modules that ``names`` holds, in their own order; "all" stands for all of the task.

    Raises:
        ValueError: no name, one that is no module, or a module that is made for another task; says for which.
    """
    choices = of_task(task)
    unknown = [name for name in names if name not in [*ATTENTIONS, "all"]]
    if unknown or not names:
        raise ValueError(
            f"attention must be one or more of {', '.join(choices)}, all; got {', '.join(unknown) or 'none at all'}"
        )
    for name in names:
        if name != "all" and name not in choices:
            others = " and ".join(f"cmx train {other}" for other in ATTENTIONS[name].tasks)
            raise ValueError(
                f"attention {name} is made for {others}; cmx train {task} takes {', '.join(choices)}, all"
            )
    return [name for name in choices if name in names or "all" in names]
