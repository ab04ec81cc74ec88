"""A feature pyramid on a ResNet: the encoder of PiCIE and C2L."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from cmx_fast.networks.resnet import after_third_stage, gate_weights, gated, initialise_gates

#: Blocks per stage. "resnet18" is the papers'; "resnet10" is for small machines.
BACKBONES = {"resnet18": [2, 2, 2, 2], "resnet10": [1, 1, 1, 1]}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FPN(nn.Module):
    """A feature pyramid: pictures (B, 3, H, W) in [0, 1] to one map (B, width, H / 4, W / 4).

    H and W are multiples of 32. Lin et al. 2017 as in PiCIE's code: 1x1 lateral convolutions with bias to ``width``
    channels (128 in the C2L paper, instead of 256), bilinear upsampling, sum, no smoothing convolution, and only the
    finest map as output. The pictures are standardised with ImageNet's statistics here.

    Cost of resnet18: 11.3 M parameters, 3.8 GMAC per picture of 320 x 320.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = "resnet18", width: int = 128, attention: str = ""):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {backbone!r}")
        resnet = ResNet(gated(BasicBlock, attention), BACKBONES[backbone])
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.non_local = after_third_stage(attention, 256)
        initialise_gates(self)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (64, 128, 256, 512))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def activations(self, image: Tensor) -> list[Tensor]:
        """The ResNet's four maps at strides 4, 8, 16 and 32, of 64, 128, 256 and 512 channels, after their ReLU."""
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % 32 or image.shape[3] % 32:
            raise ValueError(
                f"image must have shape (B, 3, H, W), H and W multiples of 32; got {tuple(image.shape)}"
            )
        x = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == 2:
                x = self.non_local(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        *finer, coarsest = [
            lateral(x) for lateral, x in zip(self.lateral, self.activations(image), strict=True)
        ]
        top = coarsest
        for x in reversed(finer):
            top = x + F.interpolate(top, size=x.shape[2:], mode="bilinear")
        return top


def load_imagenet(encoder: FPN, path: Path | str) -> None:
    """Load torchvision's ImageNet checkpoint (``resnet18-f37072fd.pth``) into the encoder's ResNet.

    Nothing is downloaded. The pyramid's own convolutions and the checkpoint's classifier are left alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of that form, or is of another architecture; the message says which
                names or shapes differ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ImageNet weights at {path}; torchvision offers resnet18-f37072fd.pth")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    if not isinstance(weights, dict) or "conv1.weight" not in weights:
        keys = ", ".join(map(str, list(weights)[:5])) if isinstance(weights, dict) else type(weights).__name__
        raise ValueError(f"{path} has no 'conv1.weight' (found: {keys}); expected torchvision's ResNet-18")
    ours = {"conv1": "stem.0", "bn1": "stem.1", **{f"layer{i + 1}": f"stages.{i}" for i in range(4)}}
    renamed = {}
    for name, value in weights.items():
        first, _, rest = name.partition(".")
        if first != "fc":
            renamed[f"{ours.get(first, first)}.{rest}"] = value
    lateral = {name: value for name, value in encoder.state_dict().items() if name.startswith("lateral.")}
    try:
        encoder.load_state_dict({**gate_weights(encoder), **renamed, **lateral})
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit this encoder (is it of another architecture?): {error}"
        ) from error
