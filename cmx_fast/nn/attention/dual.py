"""DANet: attention of positions and, beside it, of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmx_fast.ops import attention


class PositionAttention(nn.Module):
    """gamma * attention + x over all positions, (B, C, H, W) to the same: eqs. 1 and 2 of DANet, names of its code.

    Queries and keys have C / 8 channels, values C, the softmax no scale; gamma starts at 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < 8:
            raise ValueError(f"channels must be at least 8, got {channels}")
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1) for _ in "qk")
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        attended = attention(query, key, value, scale=1.0)
        return self.gamma * attended.transpose(1, 2).view_as(x) + x


class ChannelAttention(nn.Module):
    """gamma * attention + x over channels, (B, C, H, W) to the same: eqs. 3 and 4 of DANet.

    The code's energies are the row's largest product minus each product, so that unlike channels attend to each other;
    the paper prints the plain softmax. gamma starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        products = flat @ flat.transpose(1, 2)
        # softmax(largest - product): the constant drops out.
        return self.gamma * (torch.softmax(-products, dim=2) @ flat).view_as(x) + x


class DualAttention(nn.Module):
    """DANet's head: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019.

    (B, C, H, W) to logits of the two branches' sum, of the position branch and of the channel branch, each
    (B, classes, H, W): training supervises all three, testing takes the first.

    Args:
        channels: C (2048 of a ResNet). classes. inner: width of the branches (C / 4, the code's).
    """

    def __init__(self, channels: int, classes: int, inner: int | None = None):
        super().__init__()
        inner = channels // 4 if inner is None else inner
        self.conv5a, self.conv5c, self.conv51, self.conv52 = (
            _convolution(width, inner) for width in (channels, channels, inner, inner)
        )
        self.sa, self.sc = PositionAttention(inner), ChannelAttention()
        self.conv6, self.conv7, self.conv8 = (
            nn.Sequential(nn.Dropout2d(0.1, False), nn.Conv2d(inner, classes, 1)) for _ in "psc"
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = self.conv51(self.sa(self.conv5a(x)))
        channels = self.conv52(self.sc(self.conv5c(x)))
        return self.conv8(positions + channels), self.conv6(positions), self.conv7(channels)


def _convolution(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
