"""Sound2Scene's alignment: a sound encoder that learns to land where a fixed picture encoder puts the same moment.

Sung-Bin et al., "Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment", CVPR 2023, section 3, with what
only their code says marked [R]. The picture encoder is self-supervised (SwAV) and never trained; its features condition
a generator, so that a sound's do too.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cmx_fast.nn import PowerSpectrogram
from cmx_fast.nn.power_spectrogram import standardised_log, ten_seconds
from cmx_fast.ops import info_nce

WIDTH = 2048  # features of a picture, and of a sound
#: "l2": eq. 1 in both directions. "l2 one way": of sounds alone. "cosine": L_nce of Table 3. "regression": L2 of it.
LOSSES = ("l2", "l2 one way", "cosine", "regression")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SoundEncoder(nn.Module):
    """Waves (B, samples) at 16 kHz, of any length, to z^A (B, 2048): ResNet-18 on their log spectrogram.

    The spectrogram (B, 1, 257, 1004) is the code's: 10 s, repeated where the wave is shorter, SciPy's power spectrum,
    log, standardised by the clip. 12.22 M parameters, 9.5 GMAC per clip.

    Args:
        positive: end in a ReLU [R]; the paper ends in the linear layer. Between non-negative vectors the loss of 64
            pairs can fall to 2.79, else to 2.25.
    """

    def __init__(self, positive: bool = True):
        super().__init__()
        self.spectrogram = PowerSpectrogram()
        self.positive = positive
        resnet = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=WIDTH)
        resnet.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        for module in resnet.modules():  # [R]
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)
        self.resnet = resnet

    def forward(self, wave: Tensor) -> Tensor:
        return self.encode(standardised_log(self.spectrogram(ten_seconds(wave)))[:, None])

    def encode(self, spectrogram: Tensor) -> Tensor:
        """z^A of spectrograms (B, 1, F, T) that are there already."""
        features = self.resnet(spectrogram)
        return F.relu(features) if self.positive else features


class PictureEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to z^V (B, 2048): ResNet-50 without its classifier, always in evaluation mode.

    They are resized to 256 pixels, standardised by ImageNet's statistics and resized to 224 bicubically [R]. No
    gradient reaches it, whoever asks.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet(Bottleneck, [3, 4, 6, 3])
        self.resnet.fc = nn.Identity()  # type: ignore[assignment]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PictureEncoder:
        return super().train(False)

    @torch.no_grad()
    def forward(self, picture: Tensor) -> Tensor:
        if picture.dim() != 4 or picture.shape[1] != 3:
            raise ValueError(f"picture must have shape (B, 3, H, W), got {tuple(picture.shape)}")
        square = F.interpolate(picture, (256, 256), mode="bilinear", antialias=True)
        standardised = (square - self.mean) / self.std
        return self.resnet(F.interpolate(standardised, (224, 224), mode="bicubic", align_corners=True))


def alignment_loss(sound: Tensor, picture: Tensor, kind: str = "l2") -> Tensor:
    """The loss of sounds z^A (B, D) against the pictures z^V (B, D) of the same moments, 0-d.

    "l2" is eq. 1 with logits -||a - v|| of unit vectors and no temperature, the mean of both directions. The others are
    the ablations of Table 3: only sounds that look for their picture; cosines as logits; the mean squared distance of
    the features as they are. The pictures' encoder is fixed, so ``picture`` gets no gradient.

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
        return F.mse_loss(sound.float(), picture.float())
    return info_nce(
        sound,
        picture.to(sound.dtype),
        1.0,
        similarity="dot" if kind == "cosine" else "l2",
        symmetric=kind != "l2 one way",
        normalize=True,
    )


def load_swav(encoder: PictureEncoder, path: Path | str) -> None:
    """Load SwAV's ResNet-50 (the project's ``swav_800ep_pretrain.pth.tar``) into a picture encoder.

    The file is a state dict whose names begin with ``module.``; SwAV's projection head and prototypes are left out.
    Nothing is downloaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of that form, or of another architecture; says which names or shapes differ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no SwAV weights at {path}; the SwAV project offers swav_800ep_pretrain.pth.tar"
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    if not isinstance(stored, dict) or "module.conv1.weight" not in stored:
        found = ", ".join(map(str, list(stored)[:5])) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path} has no 'module.conv1.weight' (found: {found}); expected SwAV's own file")
    heads = ("projection_head.", "prototypes.")
    weights = {name.removeprefix("module."): value for name, value in stored.items()}
    try:
        encoder.resnet.load_state_dict({n: v for n, v in weights.items() if not n.startswith(heads)})
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit ResNet-50: {error}") from error
