"""Instance-conditioned BigGAN: pictures from noise and the features of a picture, or of a sound in its place.

Casanova et al., "Instance-Conditioned GAN", NeurIPS 2021: Sound2Scene's generator. The generator sees the features h of
an instance instead of a class; the discriminator tells pictures of h's neighbourhood from generated ones.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.networks.biggan_layers import (
    BatchNorm,
    DiscriminatorBlock,
    GeneratorBlock,
    SelfAttention,
    SpectralConv,
    SpectralLinear,
    SpectralNorm,
)

#: Multiples of the width before the first block and after each, by resolution; the generator's sizes double from 4 x 4.
GENERATOR_WIDTHS = {64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1)}
DISCRIMINATOR_WIDTHS = {64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
BOTTOM = 4
#: Side of the map that has the attention, by resolution.
ATTENTION_SIZES = {64: 32, 128: 64}


class Generator(nn.Module):
    """The generator: noise (B, dim_z) and unit instance features (B, 2048) to pictures (B, 3, S, S) in [-1, 1].

    The noise is split into equal chunks: one for the first layer, and one for each block's condition, beside the
    projected features. The defaults are IC-GAN's for ImageNet at 128 pixels: 77.16 M parameters. At 64 it has width 64.

    Args:
        resolution: S, 64 or 128. width: channels of the last block at 128 (96 [R]).
        dim_z: width of the noise, cut to a multiple of the chunks (120 [R]). features: width of h.
        condition: width of h's projection (512 [R]).
    """

    def __init__(
        self,
        resolution: int = 128,
        width: int = 96,
        dim_z: int = 120,
        features: int = 2048,
        condition: int = 512,
    ):
        super().__init__()
        widths = _widths(GENERATOR_WIDTHS, resolution, width)
        self.resolution, self.width = resolution, width
        self.chunk = dim_z // len(widths)
        if self.chunk < 1:
            raise ValueError(f"dim_z must be at least {len(widths)}, a number per block and one, got {dim_z}")
        self.dim_z = self.chunk * len(widths)
        # Never used: the published networks also hold a class embedding, and the state dicts have to be the same.
        self.shared = nn.Embedding(1000, 128).requires_grad_(False)
        self.shared_feat = SpectralLinear(features, condition)
        self.linear = SpectralLinear(self.chunk, widths[0] * BOTTOM**2)
        self.blocks = nn.ModuleList()
        size = BOTTOM
        for inner, outer in itertools.pairwise(widths):
            size *= 2
            layers: list[nn.Module] = [GeneratorBlock(inner, outer, self.chunk + condition)]
            if size == ATTENTION_SIZES[resolution]:
                layers.append(SelfAttention(outer))
            self.blocks.append(nn.ModuleList(layers))
        self.output_layer = nn.Sequential(BatchNorm(widths[-1]), nn.ReLU(), SpectralConv(widths[-1], 3))

    def forward(self, noise: Tensor, instance: Tensor) -> Tensor:
        if noise.shape[1:] != (self.dim_z,):
            raise ValueError(f"noise must have shape (B, {self.dim_z}), got {tuple(noise.shape)}")
        projected = self.shared_feat(instance)
        first, *chunks = noise.split(self.chunk, dim=1)
        x = self.linear(first).unflatten(1, (-1, BOTTOM, BOTTOM))
        for layers, chunk in zip(self.blocks, chunks, strict=True):
            assert isinstance(layers, nn.ModuleList)
            x = layers[0](x, torch.cat([projected, chunk], dim=1))
            for attention in layers[1:]:
                x = attention(x)
        return torch.tanh(self.output_layer(x))


class Discriminator(nn.Module):
    """The discriminator: pictures (B, 3, S, S) and instance features (B, 2048) to logits (B,), high for real ones.

    linear(phi) + <projection of h, phi> with phi the sum over the last map. At 128 pixels 89.59 M parameters.
    """

    def __init__(self, resolution: int = 128, width: int = 96, features: int = 2048):
        super().__init__()
        widths = _widths(DISCRIMINATOR_WIDTHS, resolution, width)
        self.blocks = nn.ModuleList()
        size = resolution
        for i, (inner, outer) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            down = size > BOTTOM
            size = size // 2 if down else size
            layers: list[nn.Module] = [DiscriminatorBlock(inner, outer, down=down, first=i == 0)]
            if size == ATTENTION_SIZES[resolution]:
                layers.append(SelfAttention(outer))
            self.blocks.append(nn.Sequential(*layers))
        self.linear = SpectralLinear(widths[-1], 1)
        self.linear_feat = SpectralLinear(features, widths[-1])

    def forward(self, picture: Tensor, instance: Tensor) -> Tensor:
        x = picture
        for block in self.blocks:
            x = block(x)
        pooled = F.relu(x).sum((2, 3))
        return self.linear(pooled)[:, 0] + (self.linear_feat(instance) * pooled).sum(1)


def _widths(table: dict[int, tuple[int, ...]], resolution: int, width: int) -> tuple[int, ...]:
    if resolution not in table:
        raise ValueError(f"resolution must be {' or '.join(map(str, table))}; got {resolution!r}")
    if width < 8 or width % 8:
        raise ValueError(f"width must be a multiple of 8 (the attention's heads), at least 8; got {width}")
    return tuple(multiple * width for multiple in table[resolution])


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss: mean of max(0, 1 - D(real)) plus mean of max(0, 1 + D(fake)), 0-d."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's hinge loss: the mean of -D(fake), 0-d."""
    return -fake.mean()


def fold_spectral_norm(network: nn.Module) -> None:
    """Divide every weight by its singular value once, in place, for inference; the outputs stay the same."""
    for module in network.modules():
        if isinstance(module, SpectralNorm) and not module.folded:
            module.fold()
