"""Options of the commands that open a CMAC run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CMACRun = Annotated[Path, typer.Option(help="Run folder of cmx train cmac.")]
RunSeed = Annotated[int, typer.Option(help="Seed of the run.")]
DataFolder = Annotated[Path, typer.Option(help="Folder of the data set.")]
