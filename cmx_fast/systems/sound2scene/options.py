"""Options of the commands that open a trained Sound2Scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: Default weight of a picture that is mixed into a sound.
WEIGHT = 0.5
#: Steps that the inversion of a picture takes.
INVERSION_STEPS = 500

SystemRun = Annotated[
    Path, typer.Option(help="Run folder of cmx train sound2scene, or the authors' sound2scene.pth.")
]
FinishedRunFolder = Annotated[Path, typer.Option(help="Run folder of cmx train sound2scene.")]
GeneratorPath = Annotated[
    Path | None,
    typer.Option(help="Generator's run folder or checkpoint, if not where the run had it."),
]
PictureEncoderPath = Annotated[
    Path | None, typer.Option(help="Picture encoder's weights, if not where the run had them.")
]
Inception = Annotated[
    Path | None, typer.Option(help="Weights of torch-fidelity's Inception, for FID and IS as published.")
]
ClipWeights = Annotated[Path | None, typer.Option(help="Weights of OpenCLIP or OpenAI, for CLIP's R@K.")]
ClipModel = Annotated[
    str | None, typer.Option(help="Name that OpenCLIP gives their model; default: that of ViT-B/32.")
]
ClipPrompt = Annotated[str, typer.Option(help="Text for CLIP; {} is the class's name: e.g. 'a photo of {}'.")]
PictureOut = Annotated[Path, typer.Option(help="Picture to write, PNG or JPEG.")]
NoiseSeed = Annotated[int, typer.Option(help="Seed of the noise: the same seed, the same picture.")]
InversionSteps = Annotated[int, typer.Option(min=0, help="Steps of Adam that the inversion takes.")]


def check_picture(out: Path) -> None:
    """Raise ValueError unless the name of a picture to write ends as one that can be written."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"out must end in .png or .jpg; got {out}")
