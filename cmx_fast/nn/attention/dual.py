"""DANet: attention of positions and, beside it, of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmx_fast.ops import attention
from cmx_fast.ops._checks import autocast
from cmx_fast.ops._implementations import transformed


class PositionAttention(nn.Module):
    """Attention over positions, gamma * attention + x, (B, C, H, W) to the same: eqs. 1 and 2 of DANet.

    Queries and keys have C / 8 channels, values C, the softmax no scale; gamma starts at 0. Names are the code's.
    ``device`` and ``dtype`` are the weights', as every layer of PyTorch takes them.
    """

    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if channels < 8:
            raise ValueError(f"channels must be at least 8, got {channels}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1, **place) for _ in "qk")
        self.value_conv = nn.Conv2d(channels, channels, 1, **place)
        self.gamma = nn.Parameter(torch.zeros(1, **place))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        attended = attention(query, key, value, scale=1.0)
        return self.gamma * attended.transpose(1, 2).view_as(x) + x


class _MixChannels(torch.autograd.Function):
    """softmax(-x x^T) x of (B, C, N): five products of C x C x N, in which libraries reach the hardware's limit.

    Autograd makes six, since it doesn't see that the energies' two gradients are products with the same x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        weights, mixed = _mix_channels(x)
        ctx.save_for_backward(x, weights)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        x, weights = ctx.saved_tensors
        slopes = torch.bmm(grad, x.transpose(1, 2))
        product_gradient = torch._softmax_backward_data(slopes, weights, 2, weights.dtype)
        value_gradient = torch.bmm(weights.transpose(1, 2), grad)
        return torch.baddbmm(value_gradient, product_gradient + product_gradient.transpose(1, 2), x, alpha=-1)


def _mix_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (B, C, C) and the mixed channels (B, C, N)."""
    weights = torch.softmax(-torch.bmm(x, x.transpose(1, 2)), dim=2).to(x.dtype)
    return weights, torch.bmm(weights, x)


class ChannelAttention(nn.Module):
    """Attention over channels, gamma * attention + x, (B, C, H, W) to the same: eqs. 3 and 4 of DANet.

    The code's energies are the row's largest product minus each product, so that unlike channels attend to each other;
    the paper prints the plain softmax (their maximum is a constant that drops out). gamma starts at 0. Memory: C x C
    weights. There are no second derivatives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        (flat,) = autocast(x.flatten(2))
        # torch.func's transforms take the formula apart themselves.
        mixed = _mix_channels(flat)[1] if transformed() else _MixChannels.apply(flat)
        return self.gamma * mixed.view_as(x) + x


class DualAttention(nn.Module):
    """DANet's head: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019.

    Features (B, C, H, W) to logits of the two branches' sum, of the position branch and of the channel branch, each
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
