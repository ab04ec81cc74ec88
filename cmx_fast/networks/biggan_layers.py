"""The layers of BigGAN: spectral norm, conditional batch norm, self-attention, residual blocks.

Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019. Parameters and buffers
have the names of the authors' PyTorch code, so that its checkpoints load.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPECTRAL_EPS = 1e-6  # IC-GAN's configuration
NORM_EPS = 1e-5


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, estimated by one step of the power iteration per call.

    In training the step is kept. Buffers: ``u0`` (1, rows), the left singular vector, and ``sv0`` (1,), the last value.
    """

    weight: Any
    u0: Tensor
    sv0: Tensor

    def track(self) -> None:
        """Register the buffers; a subclass calls it once its weight is there."""
        self.register_buffer("u0", torch.randn(1, self.weight.shape[0]))
        self.register_buffer("sv0", torch.ones(1))
        self.folded = False

    def normalised(self) -> Tensor:
        """The weight, scaled to a largest singular value of about 1."""
        if self.folded:
            return self.weight
        matrix = self.weight.flatten(1)
        with _full_precision(matrix.device):
            with torch.no_grad():
                right = F.normalize(self.u0 @ matrix, eps=SPECTRAL_EPS)
                left = F.normalize(right @ matrix.T, eps=SPECTRAL_EPS)
            largest = (right @ matrix.T @ left.T).squeeze()
        if self.training:
            with torch.no_grad():
                self.u0.copy_(left)
                self.sv0.fill_(largest)
        return self.weight / largest

    @torch.no_grad()
    def fold(self) -> None:
        """Divide the weight once and for all, for inference."""
        training, self.training = self.training, False
        self.weight.copy_(self.normalised())
        self.training, self.folded = training, True


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast, whose rounding of the value would shift every weight; "meta" has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class SpectralConv(nn.Conv2d, SpectralNorm):
    """A convolution with spectral norm, 3 x 3 by default, that keeps the picture's size."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, bias: bool = True):
        super().__init__(inner, outer, kernel, padding=kernel // 2, bias=bias)
        nn.init.orthogonal_(self.weight)
        self.track()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalised(), self.bias, padding=self.padding)


class SpectralLinear(nn.Linear, SpectralNorm):
    """A linear layer with spectral norm, from orthogonal weights: (*, inner) to (*, outer)."""

    def __init__(self, inner: int, outer: int, bias: bool = True):
        super().__init__(inner, outer, bias)
        nn.init.orthogonal_(self.weight)
        self.track()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised(), self.bias)


class BatchNorm(nn.Module):
    """Batch norm under BigGAN's names: ``gain``, ``bias``, ``stored_mean``, ``stored_var``."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.stored_mean, self.stored_var
        return F.batch_norm(x, *statistics, self.gain, self.bias, self.training, 0.1, NORM_EPS)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias (B, channels) are linear in a condition (B, width): gain = 1 + G y, bias = H y."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.gain, self.bias = (SpectralLinear(width, channels, bias=False) for _ in "gb")
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        normed = F.batch_norm(x, self.stored_mean, self.stored_var, None, None, self.training, 0.1, NORM_EPS)
        return normed * (1 + self.gain(condition))[:, :, None, None] + self.bias(condition)[:, :, None, None]


class SelfAttention(nn.Module):
    """Self-attention x + gamma * o(attention), as in SAGAN's code: keys and values pooled 2 x 2, no scale, gamma 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.theta, self.phi = (SpectralConv(channels, channels // 8, 1, bias=False) for _ in "qk")
        self.g = SpectralConv(channels, channels // 2, 1, bias=False)
        self.o = SpectralConv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        query = _rows(self.theta(x))
        key, value = (_rows(F.max_pool2d(layer(x), 2)) for layer in (self.phi, self.g))
        # Kernels that don't write the scores need equal head sizes; zeros change nothing.
        missing = (0, value.shape[-1] - query.shape[-1])
        attended = F.scaled_dot_product_attention(
            F.pad(query, missing), F.pad(key, missing), value, scale=1.0
        )
        return x + self.gamma * self.o(attended[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


def _rows(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) as rows of one head (B, 1, H W, C)."""
    return maps.flatten(2).transpose(1, 2)[:, None]


class GeneratorBlock(nn.Module):
    """A block to twice the size: norm, ReLU, upsampling, convolution, norm, ReLU, convolution; 1x1 shortcut.

    Both norms are conditional.
    """

    def __init__(self, inner: int, outer: int, condition: int):
        super().__init__()
        self.conv1, self.conv2 = SpectralConv(inner, outer), SpectralConv(outer, outer)
        self.conv_sc = SpectralConv(inner, outer, 1)
        self.bn1, self.bn2 = ConditionalBatchNorm(inner, condition), ConditionalBatchNorm(outer, condition)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.bn1(x, condition)), scale_factor=2)
        y = self.conv2(F.relu(self.bn2(self.conv1(y), condition)))
        # A 1x1 convolution before the upsampling gives the same and costs a quarter.
        return y + F.interpolate(self.conv_sc(x), scale_factor=2)


class DiscriminatorBlock(nn.Module):
    """A block, to half the size if ``down``: ReLU (unless ``first``), convolution, ReLU, convolution, mean of 2 x 2."""

    def __init__(self, inner: int, outer: int, *, down: bool, first: bool):
        super().__init__()
        self.conv1, self.conv2 = SpectralConv(inner, outer), SpectralConv(outer, outer)
        self.conv_sc = SpectralConv(inner, outer, 1) if down or inner != outer else None
        self.down, self.first = down, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        # The mean and a 1x1 convolution commute, so the order that the code varies makes no difference.
        x, y = (F.avg_pool2d(part, 2) for part in (x, y)) if self.down else (x, y)
        return y + (x if self.conv_sc is None else self.conv_sc(x))
