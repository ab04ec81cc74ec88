"""Options of C2L's commands, each worded once, and the names of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import words

#: The models in Table 1's order, then DFF, with their names in the report and in tables.
NAMES = {
    "picie": ("PiCIE", "PiCIE"),
    "part": ("+ part contrast", "+ part"),
    "part+pixel": ("+ part contrast, pixel consistency with MLP", "+ part, pixel (MLP)"),
    "c2l": ("C2L: + part contrast, pixel consistency with sparse code", "C2L"),
    "dff": ("DFF", "DFF"),
}

Models = Annotated[
    list[str],
    typer.Option(help=f"Model: {', '.join(NAMES)}, or all; repeatable.", autocompletion=words(*NAMES, "all")),
]
Merge = Annotated[
    Path | None, typer.Option(help="JSON file of classes and the labels that each takes; default: the run's.")
]
SkipChictopia = Annotated[
    bool, typer.Option("--skip-chictopia", help="Leave out dataset10k_*, which the paper does not have.")
]
