"""Reads what steers a trained Sound2Scene, and writes its pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from cmx_fast.data.media.files import BrokenFileError, read_picture
from cmx_fast.networks.weights import load
from cmx_fast.systems.sound2scene.controls import invert
from cmx_fast.systems.sound2scene.embedder import heard
from cmx_fast.systems.sound2scene.model import Sound2Scene


def read_latents(file: Path, system: Sound2Scene) -> tuple[Tensor, Tensor]:
    """Read the features (1, D) and the noise (1, dim_z) that ``cmx invert --save`` wrote.

    Raises:
        ValueError: not such a file.
    """
    state = load(file)
    if not {"features", "noise"} <= state.keys():
        raise ValueError(f"{file} holds no features and noise; cmx invert --save writes them")
    return state["features"].to(system.device), state["noise"].to(system.device)


def read_sound(path: Path, system: Sound2Scene) -> Tensor:
    """Read as many seconds of a sound or video file as the encoder hears, mono at 16 kHz: float32 (samples,).

    Raises:
        ValueError: missing, broken, silent, or a video without sound; says which file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return heard(path, system.sound_encoder.seconds).to(system.device)
    except BrokenFileError as error:
        raise ValueError(f"{path}: {error.reason}") from error


def write_pictures(pictures: Tensor, out: Path) -> None:
    """Write pictures (N, 3, S, S) in [0, 1] side by side; more than four make a square."""
    row = len(pictures) if len(pictures) <= 4 else round(len(pictures) ** 0.5)
    out.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(make_grid(pictures.cpu(), nrow=row, padding=2 if len(pictures) > 1 else 0)).save(out)
    print(out)


def open_picture(path: Path, system: Sound2Scene, size: int | None = None) -> Tensor:
    """Read the centred square (1, 3, S, S) of a picture in [0, 1], S by default what the picture encoder takes.

    Raises:
        ValueError: broken; says which file.
    """
    size = size or system.picture_encoder.size
    try:
        return read_picture(path, size, shorter=size)[None].to(system.device) / 255
    except BrokenFileError as error:
        raise ValueError(f"{path}: {error.reason}") from error


def inverted_picture(image: Path, system: Sound2Scene, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (1, D) and noise (1, dim_z) that make a picture file; prints how close the generator comes."""
    with torch.no_grad():
        features, noise = system.encode_picture(open_picture(image, system)), system.noise(1, seed)
    picture = open_picture(image, system, system.generator.resolution)
    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("inversion", total=steps)
        features, noise, error = invert(
            system.generator,
            picture,
            features,
            noise,
            steps=steps,
            perception=system.perceive,
            progress=lambda step, _: bar.update(task, completed=step),
        )
    print(f"{image}: mean squared error {float(error):.4f} after {steps} steps", file=sys.stderr)
    return features, noise
