"""Residual attention: a trunk multiplied by one plus a mask from a branch that goes down and up again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Numbers of attention modules in the three stages, by depth.
STAGES = {56: (1, 1, 1), 92: (1, 2, 3)}


class PreActivationUnit(nn.Module):
    """A pre-activated bottleneck (He et al. 2016): norm, ReLU, convolutions of 1, 3 and 1; the common code's names."""

    def __init__(self, inner: int, outer: int, stride: int = 1):
        super().__init__()
        hidden = outer // 4
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, hidden, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outer, 1, bias=False)
        self.conv4 = nn.Conv2d(inner, outer, 1, stride, bias=False) if inner != outer or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv1(active)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (x if self.conv4 is None else self.conv4(active))


def _units(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(PreActivationUnit(channels, channels) for _ in range(count)))


class ResidualAttention(nn.Module):
    """(1 + M) * T, (B, C, H, W) to the same: Wang et al., "Residual Attention Network", CVPR 2017, eq. 3.

    ``before`` units, then a trunk of ``trunk`` units beside a mask branch, then ``before`` units. The mask branch goes
    down ``depth`` times (max pooling of 3, stride 2, then units), comes up again bilinearly with a skip unit at every
    level, and ends in two 1 x 1 convolutions and a sigmoid (the mixed attention, the paper's choice).

    Args:
        channels: C, a multiple of 4. depth: 3, 2 or 1 in the three stages at 56, 28 and 14 pixels.
        before, trunk, mask: units p, t and r (1, 2, 1).
    """

    def __init__(self, channels: int, depth: int = 3, *, before: int = 1, trunk: int = 2, mask: int = 1):
        super().__init__()
        if channels % 4 or depth < 1:
            raise ValueError(
                f"channels must be a multiple of 4 and depth at least 1, got {channels} and {depth}"
            )
        self.first, self.last = _units(channels, before), _units(channels, before)
        self.trunk = _units(channels, trunk)
        self.down = nn.ModuleList(
            _units(channels, 2 * mask if level == depth - 1 else mask) for level in range(depth)
        )
        self.skip = nn.ModuleList(PreActivationUnit(channels, channels) for _ in range(depth - 1))
        self.up = nn.ModuleList(_units(channels, mask) for _ in range(depth - 1))
        self.gate = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def mask(self, x: Tensor) -> Tensor:
        """The mask M in (0, 1) of the features after the first units, (B, C, H, W)."""
        sizes, kept = [x.shape[2:]], []
        for level, units in enumerate(self.down):
            x = units(F.max_pool2d(x, 3, stride=2, padding=1))
            if level < len(self.skip):
                kept.append(self.skip[level](x))
                sizes.append(x.shape[2:])
        for units, skipped in zip(reversed(self.up), reversed(kept), strict=True):
            x = units(_resize(x, sizes.pop()) + skipped)
        return self.gate(_resize(x, sizes.pop()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((1 + self.mask(x)) * self.trunk(x))


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ResidualAttentionNetwork(nn.Module):
    """Attention-56 or Attention-92 of the paper's table 2: pictures (B, 3, H, W) to logits (B, classes).

    Args:
        layers: 56 or 92; or the numbers of attention modules in the three stages.
        width: channels of the first stage, doubled in each (256).
    """

    def __init__(self, classes: int = 1000, layers: int | Sequence[int] = 56, width: int = 256):
        super().__init__()
        if isinstance(layers, int):
            if layers not in STAGES:
                raise ValueError(f"layers must be 56 or 92, or modules per stage; got {layers}")
            layers = STAGES[layers]
        stem = width // 4
        body: list[nn.Module] = [
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        inner = stem
        for stage, count in enumerate(layers):
            outer = width * 2**stage
            body.append(PreActivationUnit(inner, outer, 1 if stage == 0 else 2))
            body += [ResidualAttention(outer, len(layers) - stage) for _ in range(count)]
            inner = outer
        outer = 2 * inner
        body += [PreActivationUnit(inner, outer, 2), _units(outer, 2), nn.BatchNorm2d(outer), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(outer, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))
