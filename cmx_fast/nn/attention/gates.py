"""Attention as gates: a factor per channel (SENet), and per channel and then per position (CBAM)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from cmx_fast.ops import channel_gate, pool_channels, position_gate

Device = torch.device | str | None


class SqueezeExcite(nn.Module):
    """A factor in (0, 1) for every channel, from all channels' means: x * sigmoid(W2 relu(W1 mean(x))).

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, eqs. 2 to 4. In a residual block it stands before the
    addition: ``module(x, residual)`` is the block's end, relu(module(x) + residual), in the same pass. Input and output
    (B, C, *), any number of positions; the work is :func:`cmx_fast.ops.channel_gate`. Parameter names are those of
    senet.pytorch.

    Args:
        channels: C. reduction: C over the width between the two layers (16, the paper's).
        bias: True: the layers have a bias (senet.pytorch: no; the authors' Caffe models: yes).
        device, dtype: of the weights, as every layer of PyTorch takes them.

    Raises:
        ValueError: fewer channels than the reduction, or an input of other channels.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        bias: bool = False,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = _hidden(channels, reduction)
        self.channels = channels
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias, **place),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias, **place),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        _check_channels(x, self.channels)
        lower, upper = cast(nn.Linear, self.fc[0]), cast(nn.Linear, self.fc[2])
        return channel_gate(x, lower.weight, upper.weight, lower.bias, upper.bias, residual=residual)


class ChannelGate(nn.Module):
    """CBAM's factor per channel, eq. 2: one small network's outputs for the mean and the maximum, summed."""

    def __init__(
        self, channels: int, reduction: int = 16, *, device: Device = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        hidden = _hidden(channels, reduction)
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, hidden, **place),
            nn.ReLU(),
            nn.Linear(hidden, channels, **place),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        _check_channels(x, self.channels)
        lower, upper = cast(nn.Linear, self.mlp[1]), cast(nn.Linear, self.mlp[3])
        return channel_gate(
            x, lower.weight, upper.weight, lower.bias, upper.bias, maximum=True, residual=residual
        )


class _Convolution(nn.Module):
    """A convolution and its norm, under CBAM's names."""

    def __init__(self, kernel: int, *, device: Device, dtype: torch.dtype | None):
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False, **place)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, **place)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SpatialGate(nn.Module):
    """CBAM's factor per position, eq. 3: a 7 x 7 convolution over the channels' maximum and mean."""

    def __init__(self, kernel: int = 7, *, device: Device = None, dtype: torch.dtype | None = None):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {kernel}")
        self.spatial = _Convolution(kernel, device=device, dtype=dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        pooled = pool_channels(x).to(self.spatial.conv.weight.dtype)
        return position_gate(x, torch.sigmoid(self.spatial(pooled)), residual=residual)


class CBAM(nn.Module):
    """Factors per channel, then factors per position: "Convolutional Block Attention Module", Woo et al., ECCV 2018.

    Input and output (B, C, H, W); in a residual block it stands before the addition: ``module(x, residual)`` is the
    block's end, relu(module(x) + residual). The work is :func:`cmx_fast.ops.channel_gate`, ``pool_channels`` and
    ``position_gate``. Parameter names are those of the authors' attention-module, so their weights load.

    Args:
        channels: C. reduction: of the channel gate (16, the paper's). kernel: of the spatial gate (7, the paper's).
        spatial: True: with the second gate; False: BAM's channel attention with a maximum.
        device, dtype: of the weights, as every layer of PyTorch takes them.

    Raises:
        ValueError: fewer channels than the reduction, an even kernel, or an input of other channels.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel: int = 7,
        spatial: bool = True,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction, device=device, dtype=dtype)
        self.SpatialGate = SpatialGate(kernel, device=device, dtype=dtype) if spatial else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.SpatialGate is None:
            return self.ChannelGate(x, residual)
        return self.SpatialGate(self.ChannelGate(x), residual)


def _hidden(channels: int, reduction: int) -> int:
    if reduction < 1 or channels < reduction:
        raise ValueError(f"reduction must be in [1, channels = {channels}], got {reduction}")
    return channels // reduction


def _check_channels(x: Tensor, channels: int) -> None:
    if x.dim() < 3 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (B, {channels}, *), got {tuple(x.shape)}")
