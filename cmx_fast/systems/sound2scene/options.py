"""Options of the commands that open a trained Sound2Scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SystemRun = Annotated[Path, typer.Option(help="Run folder of cmx train sound2scene.")]
GeneratorPath = Annotated[
    Path | None,
    typer.Option(help="Generator's run folder or checkpoint, if not where the run had it."),
]
PictureEncoderPath = Annotated[
    Path | None, typer.Option(help="Picture encoder's weights, if not where the run had them.")
]
