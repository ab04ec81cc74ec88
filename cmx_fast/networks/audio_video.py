"""Encoders of clips, of maps of their frames, and of their sound: R(2+1)D-18, ResNet-9 and ResNet-18."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as PictureBlock
from torchvision.models.resnet import ResNet
from torchvision.models.video.resnet import BasicBlock as ClipBlock
from torchvision.models.video.resnet import Conv2Plus1D

from cmx_fast.networks.resnet import after_third_stage, channels_last, gated, initialise_gates


class Conv3d(nn.Conv3d):
    """A 3-D convolution whose gradient is right on the CPU in bfloat16 too.

    Where time is padded, oneDNN's weight gradient reads memory that nobody wrote (torch 2.11), now and then a NaN. So
    time is padded before the convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        time, *sides = (int(size) for size in self.padding)
        if x.device.type != "cpu" or time == 0:
            return super().forward(x)
        padded = F.pad(x, (0, 0, 0, 0, time, time))
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, *sides))


class SafeConv2Plus1D(Conv2Plus1D):
    """torchvision's pair of a spatial and a temporal convolution with a :class:`Conv3d` as the temporal one."""

    def __init__(self, inner: int, outer: int, middle: int, stride: int = 1, padding: int = 1):
        super().__init__(inner, outer, middle, stride, padding)
        self[3] = Conv3d(middle, outer, (3, 1, 1), stride=(stride, 1, 1), padding=(padding, 0, 0), bias=False)


class R2Plus1D(nn.Module):
    """R(2+1)D: clips (B, 3, T, H, W) to (B, 8 width, T / 8, H / 16, W / 16), sizes rounded up.

    Tran et al. 2018: every 3-D convolution as a spatial and a temporal one. ``blocks`` 2 and ``width`` 64 are
    R(2+1)D-18 with torchvision's parameter names, so its weights load. With ``last_stride`` 1 the last stage keeps
    its input's size. Cost of R(2+1)D-18: 31.3 M parameters, 106 GMAC per clip of 32 x 128 x 128.
    """

    def __init__(self, blocks: int = 2, width: int = 64, last_stride: int = 2, attention: str = ""):
        super().__init__()
        self.block = gated(ClipBlock, attention)
        self.channels = 8 * width
        middle = 45 * width // 64
        self.stem = nn.Sequential(
            nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.layer4 = self._stage(4 * width, 8 * width, blocks, last_stride)
        initialise(self)
        self.non_local = after_third_stage(attention, 4 * width, 3)
        channels_last(self, attention)

    def _stage(self, inner: int, outer: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or inner != outer:
            shortcut = nn.Sequential(
                nn.Conv3d(inner, outer, 1, stride=(stride,) * 3, bias=False), nn.BatchNorm3d(outer)
            )
        first = self.block(inner, outer, SafeConv2Plus1D, stride, shortcut)
        return nn.Sequential(first, *(self.block(outer, outer, SafeConv2Plus1D) for _ in range(blocks - 1)))

    def forward(self, clips: Tensor) -> Tensor:
        x = self.layer1(self.stem(clips))
        return self.layer4(self.non_local(self.layer3(self.layer2(x))))


class TemporalEncoder(nn.Module):
    """Maps of a clip's frames by a fixed picture encoder, (B, C, T, h, w), to (B, 8 width, T / 8, h, w), rounded up.

    The channels are standardised over the batch and projected; three temporal convolutions of 3 frames and stride 2
    follow. A position of the map is never mixed with another. With ``motion`` each position's mean over the clip is
    taken off first.
    """

    def __init__(self, inputs: int, width: int = 64, motion: bool = False):
        super().__init__()
        self.channels, self.motion = 8 * width, motion
        channels = self.channels
        self.standardise = nn.BatchNorm3d(inputs, affine=False)
        layers: list[nn.Module] = [nn.Conv3d(inputs, channels, 1, bias=False)]
        for _ in range(3):
            layers += [
                nn.BatchNorm3d(channels),
                nn.ReLU(inplace=True),
                Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0), bias=False),
            ]
        self.layers = nn.Sequential(*layers, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))
        initialise(self)
        channels_last(self)

    def forward(self, maps: Tensor) -> Tensor:
        if self.motion:
            maps = maps - maps.mean(2, keepdim=True)
        return self.layers(self.standardise(maps))


class ResNet9(nn.Module):
    """A ResNet with one block per stage: spectrograms (B, 1, F, T) to (B, 8 width, F / 32, T / 32), sizes rounded up.

    257 x 99 gives 9 x 4. Cost at ``width`` 64: 4.9 M parameters, 0.5 GMAC per second of sound.
    """

    def __init__(self, width: int = 64, attention: str = ""):
        super().__init__()
        self.channels, self.block = 8 * width, gated(PictureBlock, attention)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential(
            self.block(width, width),
            *(self._halving(width * 2**i) for i in range(3)),
        )
        initialise(self)
        self.non_local = after_third_stage(attention, 4 * width)
        initialise_gates(self)
        channels_last(self, attention)

    def _halving(self, inner: int) -> PictureBlock:
        shortcut = nn.Sequential(
            nn.Conv2d(inner, 2 * inner, 1, stride=2, bias=False), nn.BatchNorm2d(2 * inner)
        )
        return self.block(inner, 2 * inner, 2, shortcut)

    def maps(self, spectrograms: Tensor) -> list[Tensor]:
        """The output of the stem and of each stage, finest first: (B, C, F', T'); the last one is the encoder's."""
        *early, last = self.stages
        maps = [self.stem(spectrograms)]
        for stage in early:
            maps.append(stage(maps[-1]))
        return [*maps, last(self.non_local(maps[-1]))]

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.maps(spectrograms)[-1]


class ResNet18(ResNet):
    """torchvision's ResNet-18 of any ``width``: pictures or spectrograms (B, channels, H, W) to (B, features).

    Its parameter names are torchvision's. ``width``: channels of the first stage, an eighth of the last's. With
    ``last_stride`` 1 the last stage keeps its input's size.
    """

    def __init__(self, features: int, *, channels: int = 1, width: int = 64, last_stride: int = 2):
        self.width, self.last_stride = width, last_stride
        super().__init__(PictureBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(8 * width, features)
        channels_last(self)

    def _make_layer(self, block: Any, planes: int, *more: Any, **options: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        if planes == 512:
            options["stride"] = self.last_stride
        return super()._make_layer(block, planes * self.width // 64, *more, **options)

    def maps(self, x: Tensor) -> Tensor:
        """The maps (B, 8 width, H / 32, W / 32) of which the mean is taken."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def initialise(module: nn.Module) -> None:
    """Initialise by He et al. 2015 over the outputs, as torchvision's and GDT's encoders do."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
