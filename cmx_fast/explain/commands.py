"""``cmx gradcam``: where a trained run's similarity of a picture and a sound comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmx_fast.options import Device, EncoderFile, RunModel, RunSeed

#: The commands whose runs are explained, and the classes that do.
EXPLAINED = {
    "train cmac": "cmx_fast.systems.cmac.embedder:CMACEmbedder",
    "train csir": "cmx_fast.systems.csir.embedder:CSIREmbedder",
}


def gradcam(
    run: Annotated[Path, typer.Option(help="Run folder of cmx train csir or cmac, or a saved model.")],
    image: Annotated[Path | None, typer.Option(help="Picture, of a CSIR run.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Recording to compare the picture with.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video with sound, of a CMAC run.")] = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("gradcam.png"),
    model: RunModel = None,
    seed: RunSeed = None,
    encoder_file: EncoderFile = None,
    device: Device = None,
) -> None:
    """Show the pixels, and the parts of the sound, that the similarity of both comes from.

    Of CSIR: Grad-CAM of the cosine in the picture, and the cosine's fall without each part of the spectrogram. Of CMAC:
    the maps in which pictures and sound guide one another.
    """
    for name, file in (("image", image), ("audio", audio), ("video", video)):
        if file is not None and not file.is_file():
            raise ValueError(f"--{name} {file}: there is no such file")
    from cmx_fast.explain.pictures import draw
    from cmx_fast.train.trained_model import open_trained

    embedder = open_trained(
        run,
        EXPLAINED,
        "compare pictures with sounds by maps",
        model=model,
        seed=seed,
        encoder_file=encoder_file,
        device=device,
    )
    typer.echo(draw(embedder, out, image, audio, video))
