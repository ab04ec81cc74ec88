"""SANet: attention that also groups pixels, from a squeezed copy of the features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeAttention(nn.Module):
    """SANet's block, (B, C, H, W) to (B, out, H, W): X_attn * X_res + X_attn with X_attn = up(conv(mean of 2 x 2)).

    Zhong et al., "Squeeze-and-Attention Networks for Semantic Segmentation", CVPR 2020, eqs. 1 and 2: unlike a gate per
    channel, the squeezed branch keeps half the resolution and is not squashed to (0, 1). Both branches are two 3 x 3
    convolutions with norms and ReLUs; the paper says "a few", no code is public.
    """

    def __init__(self, channels: int, out: int | None = None):
        super().__init__()
        out = channels if out is None else out
        self.main, self.attention = (
            nn.Sequential(*_convolution(channels, out), *_convolution(out, out)) for _ in "ra"
        )

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        attended = F.interpolate(self.attention(squeezed), x.shape[2:], mode="bilinear", align_corners=False)
        return attended * self.main(x) + attended


def _convolution(inner: int, outer: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
