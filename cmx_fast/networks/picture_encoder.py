"""Self-supervised picture encoders: SwAV's ResNet-50, whose features Sound2Scene uses, and a small one."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD
from cmx_fast.networks.weights import digest

#: "resnet50": the paper's. "small": four residual blocks on small pictures, for training here.
ENCODERS = ("resnet50", "small")


class PictureEncoder(nn.Module):
    """A fixed encoder: pictures (B, 3, H, W) in [0, 1] to features z^V (B, width), without gradients.

    "resnet50" has width 2048 and no classifier: pictures are resized to 256 pixels, standardised by ImageNet's
    statistics and resized to 224 bicubically [R]. "small" takes 64 pixels: a 3x3 convolution and four residual blocks
    of strides 2, of width 128.

    Attributes:
        width: the features'. size: pixels of the square that pictures are resized to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "resnet50") -> None:
        super().__init__()
        if kind not in ENCODERS:
            raise ValueError(f"kind must be one of {', '.join(ENCODERS)}; got {kind!r}")
        self.kind = kind
        if kind == "resnet50":
            self.resnet: nn.Module = ResNet(Bottleneck, [3, 4, 6, 3])
            self.resnet.fc = nn.Identity()
            self.width, self.size = 2048, 256
        else:
            self.resnet, self.width, self.size = small_resnet(), 128, 64
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PictureEncoder:
        """Stay in evaluation whatever ``mode`` is: the network is fixed."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, picture: Tensor) -> Tensor:
        if picture.dim() != 4 or picture.shape[1] != 3:
            raise ValueError(f"picture must have shape (B, 3, H, W), got {tuple(picture.shape)}")
        return self.resnet(self.standardise(picture))

    def standardise(self, picture: Tensor) -> Tensor:
        """Resize and standardise pictures as the network takes them."""
        sides = (self.size, self.size)
        if picture.shape[2:] != sides:
            picture = F.interpolate(picture, sides, mode="bilinear", antialias=True)
        standardised = (picture - self.mean) / self.std
        if self.kind == "small":
            return standardised
        return F.interpolate(standardised, (224, 224), mode="bicubic", align_corners=True)

    def fingerprint(self) -> str:
        """A hash of the weights: that of features which this encoder gives."""
        return digest([self.kind, self.state_dict()])


def small_resnet(width: int = 16) -> nn.Sequential:
    """The small network: pictures (B, 3, 64, 64) to (B, 8 width)."""
    stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    channels = (width, width, 2 * width, 4 * width, 8 * width)
    blocks = [
        BasicBlock(
            inner, outer, 2, nn.Sequential(nn.Conv2d(inner, outer, 1, 2, bias=False), nn.BatchNorm2d(outer))
        )
        for inner, outer in itertools.pairwise(channels)
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def load_swav(encoder: PictureEncoder, path: Path | str) -> None:
    """Load SwAV's ResNet-50 (the project's ``swav_800ep_pretrain.pth.tar``) into a picture encoder.

    The file is a state dict whose names begin with ``module.``; SwAV's projection head and prototypes are left out.
    Nothing is downloaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of that form, or is of another architecture; the message says which
            names or shapes differ.
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
        names = ", ".join(map(str, list(stored)[:5])) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path} has no 'module.conv1.weight' (found: {names}); expected SwAV's own file")
    heads = ("projection_head.", "prototypes.")
    weights = {name.removeprefix("module."): value for name, value in stored.items()}
    try:
        encoder.resnet.load_state_dict({n: v for n, v in weights.items() if not n.startswith(heads)})
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit ResNet-50: {error}") from error
