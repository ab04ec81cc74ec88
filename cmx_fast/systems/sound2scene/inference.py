"""``cmx generate``, ``cmx edit``, ``cmx invert``: pictures of a trained Sound2Scene, steered by sound and picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from cmx_fast.data.media.files import BrokenFileError, read_picture
from cmx_fast.networks.weights import load, save
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
from cmx_fast.systems.sound2scene.controls import (
    INVERSION_STEPS,
    change_volume,
    edit,
    interpolate,
    invert,
    mix,
)
from cmx_fast.systems.sound2scene.embedder import heard
from cmx_fast.systems.sound2scene.model import Sound2Scene
from cmx_fast.systems.sound2scene.options import GeneratorPath, PictureEncoderPath, SystemRun

#: Default weight of a picture that is mixed in.
WEIGHT = 0.5

PictureOut = Annotated[Path, typer.Option(help="Picture to write, PNG or JPEG.")]
NoiseSeed = Annotated[int, typer.Option(help="Seed of the noise: the same seed, the same picture.")]
InversionSteps = Annotated[int, typer.Option(min=0, help="Steps of Adam that the inversion takes.")]


def generate_picture(
    audio: Annotated[Path, typer.Option(help="Sound or video file.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    volume: Annotated[float, typer.Option(help="Volume of the sound, in dB.")] = 0.0,
    mix_with: Annotated[Path | None, typer.Option("--mix", help="Second sound, added to the first.")] = None,
    mix_volume: Annotated[float, typer.Option(help="Volume of the second sound, in dB.")] = 0.0,
    image: Annotated[Path | None, typer.Option(help="Picture to mix in.")] = None,
    weight: Annotated[
        float, typer.Option(help="Weight of the picture: 0 the sound alone, 1 the picture.")
    ] = WEIGHT,
    samples: Annotated[
        int, typer.Option(min=1, help="Pictures to make, side by side, each of other noise.")
    ] = 1,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
) -> None:
    """Paint the source of a sound, of two mixed sounds, or of a sound in a given scene."""
    for option, changed, needed in (
        ("--mix-volume", mix_volume != 0 and mix_with is None, "--mix"),
        ("--weight", weight != WEIGHT and image is None, "--image"),
    ):
        if changed:
            raise ValueError(f"{option} has no effect without {needed}")
    _writable(out)
    system = open_sound2scene(run, icgan, picture_encoder)
    waves = [change_volume(read_sound(audio, system), volume)]
    if mix_with is not None:
        waves.append(change_volume(read_sound(mix_with, system), mix_volume))
    with torch.no_grad():
        features = system.encode_sound(mix(*waves)[None])
        if image is not None:
            features = interpolate(system.encode_picture(_picture(image, system)), features, weight)
        pictures = system.generate(features.expand(samples, -1), system.noise(samples, seed))
    write_pictures(pictures, out)


def edit_picture(
    image: Annotated[Path, typer.Option(help="Picture to edit.")],
    audio: Annotated[Path, typer.Option(help="Sound that goes with the picture.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    to: Annotated[
        Path | None, typer.Option(help="Sound that the picture is to have; default: the same.")
    ] = None,
    volume: Annotated[float, typer.Option(help="Volume of the sound it is to have, in dB.")] = 0.0,
    strength: Annotated[float, typer.Option(help="Strength of the change; 0: the picture as it is.")] = 1.0,
    inverted: Annotated[
        Path | None,
        typer.Option(help="File that cmx invert --save wrote of the picture; default: invert it now."),
    ] = None,
    steps: InversionSteps = INVERSION_STEPS,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
) -> None:
    """Edit a picture by the difference of two sounds: invert it, and move its features.

    Writes the picture as the generator can make it, beside the edited one.
    """
    if to is None and volume == 0:
        raise ValueError("nothing to edit: give the sound it is to have, --to, or another --volume")
    if inverted is not None and (steps != INVERSION_STEPS or seed):
        raise ValueError(
            "--steps and --seed are of the inversion, which --inverted has done: they have no effect"
        )
    _writable(out)
    system = open_sound2scene(run, icgan, picture_encoder)
    current, sought = read_sound(audio, system), read_sound(to or audio, system)
    features, noise = _inverted(image, system, steps, seed) if inverted is None else read_latents(inverted)
    with torch.no_grad():
        target = system.encode_sound(change_volume(sought, volume)[None])
        moved = edit(features, target, system.encode_sound(current[None]), strength)
        pictures = torch.cat([system.generate(h, noise) for h in (features, moved)])
    write_pictures(pictures, out)


def invert_picture(
    image: Annotated[Path, typer.Option(help="Picture to invert.")],
    out: PictureOut,
    run: SystemRun = Path("runs/sound2scene"),
    save_to: Annotated[
        Path | None, typer.Option("--save", help="File to write features and noise to.")
    ] = None,
    steps: InversionSteps = INVERSION_STEPS,
    seed: NoiseSeed = 0,
    icgan: GeneratorPath = None,
    picture_encoder: PictureEncoderPath = None,
) -> None:
    """Find features and noise from which the generator makes a picture (GAN inversion); write what it makes."""
    _writable(out)
    system = open_sound2scene(run, icgan, picture_encoder)
    features, noise = _inverted(image, system, steps, seed)
    with torch.no_grad():
        write_pictures(system.generate(features, noise), out)
    if save_to is not None:
        save(save_to, {"features": features, "noise": noise})


def read_latents(file: Path) -> tuple[Tensor, Tensor]:
    """Read the features (1, D) and the noise (1, dim_z) that ``cmx invert --save`` wrote.

    Raises:
        ValueError: not such a file.
    """
    state = load(file)
    if not {"features", "noise"} <= state.keys():
        raise ValueError(f"{file} holds no features and noise; cmx invert --save writes them")
    return state["features"], state["noise"]


def read_sound(path: Path, system: Sound2Scene) -> Tensor:
    """Read as many seconds of a sound or video file as the encoder hears, mono at 16 kHz: float32 (samples,).

    Raises:
        ValueError: missing, broken, silent, or a video without sound; says which file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return heard(path, system.sound_encoder.seconds)
    except BrokenFileError as error:
        raise ValueError(f"{path}: {error.reason}") from error


def write_pictures(pictures: Tensor, out: Path) -> None:
    """Write pictures (N, 3, S, S) in [0, 1] side by side; more than four make a square."""
    row = len(pictures) if len(pictures) <= 4 else round(len(pictures) ** 0.5)
    out.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(make_grid(pictures.cpu(), nrow=row, padding=2 if len(pictures) > 1 else 0)).save(out)
    print(out)


def _picture(path: Path, system: Sound2Scene, size: int | None = None) -> Tensor:
    size = size or system.picture_encoder.size
    try:
        return read_picture(path, size, shorter=size)[None] / 255
    except BrokenFileError as error:
        raise ValueError(f"{path}: {error.reason}") from error


def _inverted(image: Path, system: Sound2Scene, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Invert a picture file; print how close the generator comes."""
    with torch.no_grad():
        features, noise = system.encode_picture(_picture(image, system)), system.noise(1, seed)
    picture = _picture(image, system, system.generator.resolution)
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


def _writable(out: Path) -> None:
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"out must end in .png or .jpg; got {out}")
