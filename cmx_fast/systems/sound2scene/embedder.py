"""Embeds pictures and sounds by a trained Sound2Scene run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cmx_fast.data.media.decode import probe, read_wave
from cmx_fast.data.media.files import BrokenFileError, read_audio, read_picture
from cmx_fast.data.media.suffixes import VIDEOS
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
from cmx_fast.systems.sound2scene.model import SAMPLE_RATE, Sound2Scene
from cmx_fast.train.fabric import default_device


def heard(file: Path, seconds: float) -> Tensor:
    """The first seconds of a sound file or of a video's sound, mono at 16 kHz: float32 (samples,).

    Raises:
        BrokenFileError: the file can't be decoded, or is silent.
    """
    if file.suffix.lower() not in VIDEOS:
        return read_audio(file, SAMPLE_RATE, round(seconds * SAMPLE_RATE), mix=True)
    media = probe(file)
    wave = read_wave(file, media.start, min(seconds, media.seconds), SAMPLE_RATE)
    if not wave.any():
        raise BrokenFileError(file, "is silent")
    return wave


class Sound2SceneEmbedder:
    """Pictures, sounds and the sounds of videos as unit vectors of the picture encoder's space.

    Attributes:
        system: the :class:`Sound2Scene` itself, for waves and pictures that are no files.
    """

    kinds = ("image", "audio", "video")

    def __init__(self, system: Sound2Scene):
        self.system = system

    @classmethod
    def from_run(
        cls, folder: Path | str, *, model: str | None = None, seed: int | None = None
    ) -> Sound2SceneEmbedder:
        """Open a finished ``cmx train sound2scene`` folder, on the GPU if there is one.

        Raises:
            ValueError: no finished run; or a model or seed is named, of which such a run has one.
        """
        if model is not None or seed is not None:
            raise ValueError("a run of cmx train sound2scene has one model: leave --model and --seed out")
        return cls(open_sound2scene(folder).to(default_device()))

    @torch.no_grad()
    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a picture, of a sound, or of a video's sound; float32 on the CPU.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        system, device = self.system, next(self.system.parameters()).device
        if kind == "image":
            size = system.picture_encoder.size
            picture = read_picture(file, size, shorter=size).to(device)
            return system.encode_picture(picture[None] / 255)[0].float().cpu()
        wave = heard(file, system.sound_encoder.seconds)
        return system.encode_sound(wave[None].to(device))[0].float().cpu()
