"""Sound2Scene's alignment: a sound encoder learns the features that a fixed picture encoder gives of the same moment.

Sung-Bin et al., "Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment", CVPR 2023, section 3; [R] marks
what only their code says. The picture encoder is self-supervised (SwAV) and never trained. Its features condition a
generator, so a sound's can, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.transforms import Resample

from cmx_fast.networks.audio_encoders import AudioEncoder
from cmx_fast.networks.audio_video import ResNet18
from cmx_fast.networks.biggan import Generator, fold_spectral_norm
from cmx_fast.networks.picture_encoder import PictureEncoder
from cmx_fast.networks.visual_encoders import VisualEncoder
from cmx_fast.nn import PowerSpectrogram
from cmx_fast.nn.power_spectrogram import lasting, standardised_log
from cmx_fast.ops import info_nce
from cmx_fast.systems.sound2scene.recipe import LOSSES
from cmx_fast.train.trainable import Batch

SAMPLE_RATE = 16000


class SoundEncoder(nn.Module):
    """Waves (B, samples) at 16 kHz, of any length, to z^A (B, features): ResNet-18 on their log spectrogram.

    The spectrogram (B, 1, 257, 1004) is the code's: 10 s, repeated where the wave is shorter, SciPy's power spectrum,
    log, standardised by the clip. 12.22 M parameters, 9.5 GMAC per clip.

    Args:
        features: width of z^A and of the pictures' features (2048 [P]).
        width: channels of the first stage, an eighth of the last's (64 [P]).
        seconds: length of the sound (10 [P]).
        positive: end in a ReLU [R]; the paper ends in the linear layer. With non-negative vectors the loss of 64 pairs
            can fall to 2.79, else to 2.25.
    """

    def __init__(self, features: int = 2048, width: int = 64, seconds: float = 10.0, positive: bool = True):
        super().__init__()
        self.spectrogram = PowerSpectrogram()
        self.seconds, self.positive = seconds, positive
        resnet = ResNet18(features, width=width)
        for module in resnet.modules():  # [R]
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)
        self.resnet = resnet
        self.fixed = False

    def fix_maps(self) -> None:
        """Let nothing but the last layer learn: the rest gets no gradient and stays in evaluation."""
        self.fixed = True
        self.requires_grad_(False).eval()
        self.resnet.fc.requires_grad_(True)

    def train(self, mode: bool = True) -> SoundEncoder:
        """Stay in evaluation, whatever ``mode`` is, once the maps are fixed."""
        return super().train(mode and not self.fixed)

    def forward(self, wave: Tensor) -> Tensor:
        return self.encode(self.standardised_spectrogram(wave))

    @torch.no_grad()
    def standardised_spectrogram(self, wave: Tensor) -> Tensor:
        """The network's input (B, 1, F, T) for waves (B, samples)."""
        return standardised_log(self.spectrogram(lasting(wave, self.seconds)))[:, None]

    def encode(self, spectrogram: Tensor) -> Tensor:
        """z^A of standardised spectrograms (B, 1, F, T)."""
        features = self.resnet(spectrogram)
        return F.relu(features) if self.positive else features


def alignment_loss(sound: Tensor, picture: Tensor, kind: str = "l2") -> Tensor:
    """The loss of sounds z^A (B, D) against the pictures z^V (B, D) of the same moments, 0-d.

    "l2" is eq. 1 with logits -||a - v|| of unit vectors and no temperature, the mean of both directions; "l2 one way"
    (ours) has only sounds as queries. The ablations of Table 2: "cosine" takes cosines as logits, "regression" is the
    mean over the pairs of ||z^V - z^A||, as section 3.1 prints it: not squared, of features that are not normalised.
    The pictures' encoder is fixed, so ``picture`` gets no gradient.

    Raises:
        ValueError: an unknown kind, or features of another shape.
    """
    if kind not in LOSSES:
        raise ValueError(f"kind must be one of {', '.join(map(repr, LOSSES))}; got {kind!r}")
    if sound.shape != picture.shape or sound.dim() != 2:
        raise ValueError(
            f"sound and picture must have the same shape (B, D), got {tuple(sound.shape)} and {tuple(picture.shape)}"
        )
    picture = picture.detach()
    if kind == "regression":
        return torch.linalg.vector_norm(picture.float() - sound.float(), dim=1).mean()
    return info_nce(
        sound,
        picture.to(sound.dtype),
        1.0,
        similarity="dot" if kind == "cosine" else "l2",
        symmetric=kind != "l2 one way",
        normalize=True,
    )


class PretrainedSoundEncoder(nn.Module):
    """Waves (B, samples) at 16 kHz, of any length, to z^A (B, features): a linear layer on a fixed audio encoder.

    Ours, for sets of a few thousand clips and fewer. The wave is repeated to ``seconds`` and resampled to the encoder's
    rate.

    Args:
        audio_encoder: of :mod:`cmx_fast.networks.audio_encoders`.
        features, seconds, positive: as of :class:`SoundEncoder`.

    Raises:
        ValueError: ``seconds`` are fewer than the encoder needs.
    """

    def __init__(
        self, audio_encoder: AudioEncoder, features: int, seconds: float = 10.0, positive: bool = True
    ):
        super().__init__()
        rate = audio_encoder.sample_rate
        if seconds * rate < audio_encoder.shortest:
            raise ValueError(
                f"seconds must be at least {audio_encoder.shortest / rate:.3g} for {audio_encoder.name}; got {seconds}"
            )
        self.audio_encoder, self.seconds, self.positive = audio_encoder, seconds, positive
        self.resample = nn.Identity() if rate == SAMPLE_RATE else Resample(SAMPLE_RATE, rate)
        self.standardise = nn.BatchNorm1d(audio_encoder.width, affine=False)
        self.head = nn.Linear(audio_encoder.width, features)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.no_grad():
            heard = self.audio_encoder(self.resample(lasting(wave, self.seconds)))
        features = self.head(self.standardise(heard))
        return F.relu(features) if self.positive else features


class Alignment(nn.Module):
    """The module that ``cmx train sound2scene`` trains; a batch has "wave" (B, samples) and "picture" (B, D), z^V."""

    def __init__(self, sound_encoder: SoundEncoder | PretrainedSoundEncoder, kind: str = "l2"):
        super().__init__()
        self.sound_encoder, self.kind = sound_encoder, kind

    def forward(self, batch: Batch) -> Batch:
        return {"sound": self.sound_encoder(batch["wave"])}

    def losses(self, outputs: Batch, batch: Batch) -> Batch:
        return {"loss": alignment_loss(outputs["sound"], batch["picture"], self.kind)}


class Sound2Scene(nn.Module):
    """A trained system, for inference: maps sounds and pictures to unit features, and features to pictures.

    The controls of section 5 are in :mod:`cmx_fast.systems.sound2scene.controls`.
    """

    generator: Generator

    def __init__(
        self,
        picture_encoder: PictureEncoder | VisualEncoder,
        sound_encoder: SoundEncoder | PretrainedSoundEncoder,
        generator: Generator,
    ):
        super().__init__()
        self.picture_encoder, self.sound_encoder = picture_encoder, sound_encoder
        fold_spectral_norm(generator)
        self.generator = generator
        self.requires_grad_(False).eval()

    def encode_sound(self, wave: Tensor) -> Tensor:
        """z^A (B, D) of waves (B, samples) at 16 kHz, float in [-1, 1], of any length.

        Raises:
            ValueError: another shape, no samples, or a wave with NaN or infinity.
        """
        if wave.dim() != 2 or not wave.is_floating_point():
            raise ValueError(
                f"wave must be float (B, samples), got {wave.dtype} of shape {tuple(wave.shape)}"
            )
        if not wave.isfinite().all():
            raise ValueError("wave has NaN or infinity in it")
        return F.normalize(self.sound_encoder(wave), dim=1)

    def encode_picture(self, picture: Tensor) -> Tensor:
        """z^V (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        return F.normalize(self.picture_encoder(picture), dim=1)

    def perceive(self, picture: Tensor) -> Tensor:
        """The picture encoder's features (B, D), with a gradient: for perceptual distances."""
        encoder = self.picture_encoder
        if isinstance(encoder, VisualEncoder):
            return encoder(picture)
        return encoder.resnet(encoder.standardise(picture))

    @property
    def device(self) -> torch.device:
        """The device of its networks."""
        return next(self.generator.parameters()).device

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """Noise vectors (count, dim_z), the same for the same seed on any device."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(count, self.generator.dim_z, generator=generator)
        return drawn.to(self.device)

    def generate(self, features: Tensor, noise: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] from features (B, D), which are divided by their length first [R]."""
        return (self.generator(noise, F.normalize(features, dim=1)) + 1) / 2
