"""Feature pyramids, on a ResNet or on the maps of any encoder: the encoders of PiCIE and C2L."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from cmx_fast.networks.names import BACKBONES
from cmx_fast.networks.resnet import after_third_stage, gate_weights, gated, initialise_gates

#: Channels, height and width of a map.
MapShape = tuple[int, int, int]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pyramid(nn.Module):
    """A feature pyramid on maps that a fixed encoder has made: rows (B, R) of :func:`pack` to (B, width, side, side).

    Lin et al. 2017 as in PiCIE's code: 1x1 lateral convolutions with bias to ``width`` channels (128 in the C2L paper,
    instead of 256), bilinear upsampling, sum, no smoothing convolution, and only the finest map as output.

    Two things are ours. An encoder's maps have scales of their own, so every place of each is first divided by its root
    mean square. The lateral convolutions start as orthogonal projections without bias, so that what the encoder tells
    apart is apart from the start.

    Args:
        shapes: (channels, height, width) of the packed maps, finest first.
        side: of the output, to which a coarser sum is enlarged bilinearly; None: that of the finest map.
    """

    def __init__(self, shapes: Sequence[MapShape], width: int = 128, side: int | None = None):
        super().__init__()
        self.shapes, self.side = list(shapes), side or shapes[0][1]
        lateral = [nn.Conv2d(channels, width, 1) for channels, _, _ in shapes]
        for layer in lateral:
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.lateral = nn.ModuleList(lateral)

    def activations(self, rows: Tensor) -> list[Tensor]:
        """The packed maps, not negative, as :meth:`FPN.activations` gives them."""
        return [F.relu(x) for x in unpack(rows, self.shapes)]

    def forward(self, rows: Tensor) -> Tensor:
        top = top_down(self.lateral, [even(x) for x in unpack(rows, self.shapes)])
        return (
            F.interpolate(top, (self.side, self.side), mode="bilinear") if top.shape[2] != self.side else top
        )


class FPN(nn.Module):
    """A ResNet and its feature pyramid: pictures (B, 3, H, W) in [0, 1] to one map (B, width, H / 4, W / 4).

    H and W are multiples of 32. The pyramid is as :class:`Pyramid`'s, on the stages' outputs as they are. The pictures
    are standardised with ImageNet's statistics here. With ``gradients`` the ResNet also sees the picture's gradients
    (:func:`sobel`), as PiCIE and C2L do where its weights start at random.

    Cost of resnet18: 11.3 M parameters, 3.8 GMAC per picture of 320 x 320.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str = "resnet18", width: int = 128, attention: str = "", gradients: bool = False
    ):
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {backbone!r}")
        super().__init__()
        self.gradients = gradients
        resnet = ResNet(gated(BasicBlock, attention), BACKBONES[backbone])
        if gradients:
            resnet.conv1 = nn.Conv2d(5, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.non_local = after_third_stage(attention, 256)
        initialise_gates(self)
        self.lateral = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in (64, 128, 256, 512))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def activations(self, image: Tensor) -> list[Tensor]:
        """The ResNet's four maps at strides 4, 8, 16 and 32, of 64, 128, 256 and 512 channels, after their ReLU."""
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % 32 or image.shape[3] % 32:
            raise ValueError(
                f"image must have shape (B, 3, H, W), H and W multiples of 32; got {tuple(image.shape)}"
            )
        x = (image - self.mean) / self.std
        if self.gradients:
            x = torch.cat([x, sobel(image)], 1)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == 2:
                x = self.non_local(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        return top_down(self.lateral, self.activations(image))


def pack(maps: Iterable[Tensor]) -> Tensor:
    """Maps (B, C, h, w) of several shapes, one behind the other in rows (B, R)."""
    return torch.cat([x.flatten(1) for x in maps], 1)


def unpack(rows: Tensor, shapes: Sequence[MapShape]) -> list[Tensor]:
    """The maps (B, C, h, w) that :func:`pack` put into rows (B, R).

    Raises:
        ValueError: the rows have another length than the shapes.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if rows.dim() != 2 or rows.shape[1] != sum(sizes):
        raise ValueError(f"rows must have shape (B, {sum(sizes)}) for maps {shapes}; got {tuple(rows.shape)}")
    return [x.unflatten(1, shape) for x, shape in zip(rows.split(sizes, 1), shapes, strict=True)]


def even(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) whose every place is divided by its root mean square."""
    return F.normalize(maps, dim=1) * math.sqrt(maps.shape[1])


def top_down(lateral: Iterable[nn.Module], maps: Sequence[Tensor]) -> Tensor:
    """Add up the maps after their ``lateral`` layers, each coarser sum enlarged to the next finer map."""
    *finer, top = [layer(x) for layer, x in zip(lateral, maps, strict=True)]
    for x in reversed(finer):
        top = x + F.interpolate(top, size=x.shape[2:], mode="bilinear")
    return top


def sobel(image: Tensor) -> Tensor:
    """Gradients of the brightness of pictures (B, 3, H, W): (B, 2, H, W), across and down, by Sobel's filters.

    The filters are divided by 8: a ramp that rises by g per pixel has the gradient g. Edges are mirrored.
    """
    across = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    filters = torch.stack([across, across.T])[:, None]
    return F.conv2d(F.pad(image.mean(1, keepdim=True), [1] * 4, mode="reflect"), filters)


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
