"""Opens trained systems and their parts, from the folders that ``cmx train`` writes or from published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmx_fast.networks.audio_encoders import AudioEncoder, open_audio_encoder
from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.biggan_weights import load_icgan_generator
from cmx_fast.networks.picture_encoder import PictureEncoder, load_swav
from cmx_fast.networks.pretrained_files import load_weights, read_state
from cmx_fast.networks.visual_encoders import VisualEncoder, reopen_visual_encoder
from cmx_fast.systems.sound2scene.icgan.model import new_generator
from cmx_fast.systems.sound2scene.icgan.recipe import ICGANRecipe
from cmx_fast.systems.sound2scene.model import PretrainedSoundEncoder, Sound2Scene, SoundEncoder
from cmx_fast.systems.sound2scene.recipe import Sound2SceneRecipe
from cmx_fast.train.run_folder import RunFolder


def open_icgan(
    path: Path | str, picture_encoder: Path | str | None = None
) -> tuple[PictureEncoder | VisualEncoder, Generator]:
    """Open the picture encoder and the generator of a ``cmx train icgan`` folder or of an IC-GAN checkpoint.

    IC-GAN's checkpoint goes with SwAV's ResNet-50, whose file is ``picture_encoder``. A run folder names its own
    encoder; ``picture_encoder`` says where that one's file is now, if it has moved.

    Raises:
        FileNotFoundError, ValueError: a file is missing, unfinished, broken or does not fit.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return _open_icgan_run(path, picture_encoder)
    generator = load_icgan_generator(path)
    if picture_encoder is None:
        raise ValueError(f"{path} goes with SwAV's ResNet-50: --picture-encoder swav_800ep_pretrain.pth.tar")
    encoder = PictureEncoder()
    load_swav(encoder, picture_encoder)
    if generator.shared_feat.weight.shape[1] != encoder.width:
        raise ValueError(
            f"{path} takes features of width {generator.shared_feat.weight.shape[1]}, ResNet-50 has {encoder.width}"
        )
    return encoder, generator


def _open_icgan_run(
    path: Path, picture_encoder: Path | str | None
) -> tuple[PictureEncoder | VisualEncoder, Generator]:
    run = RunFolder.open_finished(path, "train icgan")
    recipe = run.recipe(ICGANRecipe)
    encoder: PictureEncoder | VisualEncoder
    if recipe.encoder == "pretrained":
        encoder = reopen_visual_encoder(
            run.config["encoder"], run.config["encoder_fingerprint"], picture_encoder
        )
    elif recipe.encoder == "small":
        encoder = PictureEncoder("small")
        encoder.resnet.load_state_dict(_below("network.", run.weights("pictures")))
    else:
        encoder = PictureEncoder()
        load_swav(encoder, picture_encoder or run.config["picture_encoder"])
    generator = new_generator(recipe, encoder.width)
    generator.load_state_dict(_below("average.", run.weights("generator")))
    return encoder, generator.requires_grad_(False).eval()


def open_sound2scene(
    run: Path | str, icgan: Path | str | None = None, picture_encoder: Path | str | None = None
) -> Sound2Scene:
    """Open the system of a finished ``cmx train sound2scene`` folder, or of the authors' ``sound2scene.pth``.

    ``icgan`` and ``picture_encoder`` say where the generator's folder or checkpoint and the picture encoder's weights
    are now, if not where they were when the run was trained. The authors' file needs them.

    Raises:
        FileNotFoundError, ValueError: a file is missing, unfinished, broken or does not fit.
    """
    if Path(run).is_file():
        if icgan is None:
            raise ValueError(
                f"{run} is a sound encoder alone: say where its generator is, --icgan G_ema_best0.pth, and that one's "
                "--picture-encoder swav_800ep_pretrain.pth.tar"
            )
        encoder, generator = open_icgan(icgan, picture_encoder)
        return Sound2Scene(encoder, load_sound_encoder(run, encoder.width), generator)
    finished = RunFolder.open_finished(run, "train sound2scene")
    config = finished.config
    encoder, generator = open_icgan(icgan or config["icgan"], picture_encoder or config["picture_encoder"])
    audio_encoder = config.get("audio_encoder")
    sounds = new_sound_encoder(
        finished.recipe(Sound2SceneRecipe),
        encoder.width,
        None if audio_encoder is None else open_audio_encoder(audio_encoder),
    )
    stored = _below("sound_encoder.", finished.weights("sounds"))
    try:
        sounds.load_state_dict(stored)
    except RuntimeError as error:
        raise ValueError(f"{finished.path / 'sounds.pt'} does not fit the run's recipe: {error}") from error
    return Sound2Scene(encoder, sounds, generator)


def new_sound_encoder(
    recipe: Sound2SceneRecipe, features: int, audio_encoder: AudioEncoder | None = None
) -> SoundEncoder | PretrainedSoundEncoder:
    """A sound encoder of the recipe's size with fresh weights, on a pretrained audio encoder if there is one."""
    if audio_encoder is not None:
        return PretrainedSoundEncoder(audio_encoder, features, recipe.seconds, recipe.positive)
    return SoundEncoder(features, recipe.width, recipe.seconds, recipe.positive)


def load_sound_encoder(path: Path | str, features: int) -> SoundEncoder:
    """Load a sound encoder as the authors store theirs, ``sound2scene.pth``: ResNet-18 under ``audnet.``.

    Its width is read off the weights; it hears 10 s and ends in a ReLU.

    Args:
        features: the width of the pictures' features that it is to go with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not such a checkpoint; the message lists what is missing, unknown or of another shape.
            Or its features are of another width.
    """
    state = {name.removeprefix("audnet."): value for name, value in read_state(path).items()}
    stem, last = state.get("conv1.weight"), state.get("fc.weight")
    encoder = SoundEncoder(features if last is None else last.shape[0], 64 if stem is None else stem.shape[0])
    load_weights(encoder.resnet, state, path, "Sound2Scene's sound encoder, a ResNet-18 of one channel")
    if encoder.resnet.fc.out_features != features:
        raise ValueError(
            f"{path} gives features of width {encoder.resnet.fc.out_features}, the picture encoder of width {features}"
        )
    return encoder


def _below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
