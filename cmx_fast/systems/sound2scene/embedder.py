"""Embeds pictures and sounds by a trained Sound2Scene run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.media.decode import probe, read_wave
from cmx_fast.data.media.files import BrokenFileError, read_audio, read_picture
from cmx_fast.data.media.suffixes import VIDEOS
from cmx_fast.networks.biggan import Generator
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.systems.sound2scene.checkpoints import open_sound2scene
from cmx_fast.systems.sound2scene.model import (
    SAMPLE_RATE,
    PretrainedSoundEncoder,
    Sound2Scene,
    SoundEncoder,
)
from cmx_fast.train.fabric import default_device
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.trained_model import Encoders, Tower, TrainedModel


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


class Sound2SceneEmbedder(TrainedModel):
    """Pictures, sounds and the sounds of videos as unit vectors of the picture encoder's space.

    Attributes:
        system: the :class:`Sound2Scene` itself, which also generates pictures.
    """

    SYSTEM = "Sound2Scene"
    PAPER = "Sung-Bin et al., Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment, CVPR 2023"
    LIMITS = "It knows the sounds of the scenes that its videos showed."
    TASK = "feature-extraction"

    kinds = ("image", "audio", "video")

    def __init__(self, system: Sound2Scene):
        super().__init__()
        self.system = system
        if isinstance(system.picture_encoder, VisualEncoder):
            self.encoder = system.picture_encoder
        if isinstance(system.sound_encoder, PretrainedSoundEncoder):
            self.audio_encoder = system.sound_encoder.audio_encoder
        self.requires_grad_(False).eval()

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        seed: int | None = None,
        encoder_file: Path | str | None = None,
    ) -> Sound2SceneEmbedder:
        """Open a finished ``cmx train sound2scene`` folder, on the GPU if there is one.

        Args:
            encoder_file: weights of the picture encoder, if not where the run had them.

        Raises:
            ValueError: no finished run; its encoder has other weights; or a model or seed is named, of which such a run
                has one.
        """
        if model is not None or seed is not None:
            raise ValueError("a run of cmx train sound2scene has one model: leave --model and --seed out")
        run = RunFolder.open_finished(folder, "train sound2scene")
        system = open_sound2scene(folder, picture_encoder=encoder_file)
        opened = cls(system).from_the(run, "sound2scene", run.config.get("seed", 0))
        return opened.to(default_device())

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> Sound2SceneEmbedder:
        pictures = encoders.visual or PictureEncoder(settings["picture_encoder"])
        sounds: SoundEncoder | PretrainedSoundEncoder
        if encoders.audio is not None:
            sounds = PretrainedSoundEncoder(encoders.audio, **settings["sound_encoder"])
        else:
            sounds = SoundEncoder(**settings["sound_encoder"])
        return cls(Sound2Scene(pictures, sounds, Generator(**settings["generator"])))

    def settings(self) -> dict[str, Any]:
        pictures, sounds = self.system.picture_encoder, self.system.sound_encoder
        last = sounds.resnet.fc if isinstance(sounds, SoundEncoder) else sounds.head
        own = {"width": sounds.resnet.width} if isinstance(sounds, SoundEncoder) else {}
        generator = self.system.generator
        condition, features = generator.shared_feat.weight.shape
        return {
            "picture_encoder": pictures.kind if isinstance(pictures, PictureEncoder) else None,
            "sound_encoder": {
                "features": last.out_features,
                "seconds": sounds.seconds,
                "positive": sounds.positive,
                **own,
            },
            "generator": {
                "resolution": generator.resolution,
                "width": generator.width,
                "dim_z": generator.dim_z,
                "features": features,
                "condition": condition,
            },
        }

    def trained(self) -> Sound2Scene:
        return self.system

    def towers(self) -> dict[str, tuple[Tower, Tensor]]:
        """ "image": the picture encoder, of pictures of its own size. "audio": the sound encoder, of its seconds."""
        pictures, sounds = self.system.picture_encoder, self.system.sound_encoder
        size, samples = pictures.size, round(sounds.seconds * SAMPLE_RATE)
        return {
            "image": (Tower(self.encode_picture, {"encoder": pictures}), torch.rand(2, 3, size, size)),
            "audio": (Tower(lambda wave: _unit(sounds(wave)), {"encoder": sounds}), torch.randn(2, samples)),
        }

    @torch.no_grad()
    def encode_picture(self, picture: Tensor) -> Tensor:
        """Embed pictures (B, 3, H, W) in [0, 1], of any size: (B, D) unit rows."""
        return _unit(self.system.picture_encoder(picture))

    @torch.no_grad()
    def encode_sound(self, wave: Tensor) -> Tensor:
        """Embed sounds (B, samples) at 16 kHz in [-1, 1], of any length: (B, D) unit rows.

        Raises:
            ValueError: another shape, no samples, or a wave with NaN or infinity.
        """
        return self.system.encode_sound(wave).float()

    @torch.no_grad()
    def embed(self, file: Path, kind: str) -> Tensor:
        """The unit vector (D,) of a picture, of a sound, or of a video's sound; float32 on the CPU.

        Raises:
            BrokenFileError: the file can't be decoded, or is silent.
        """
        system, device = self.system, self.device
        if kind == "image":
            size = system.picture_encoder.size
            picture = read_picture(file, size, shorter=size).to(device)
            return self.encode_picture(picture[None] / 255)[0].cpu()
        wave = heard(file, system.sound_encoder.seconds)
        return self.encode_sound(wave[None].to(device))[0].cpu()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)
