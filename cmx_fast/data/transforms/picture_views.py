"""PiCIE's views of a picture: two colour changes and one geometric change, drawn from seed, epoch and picture alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.loaders.upload import upload
from cmx_fast.nn import warp
from cmx_fast.reference import blend, grey

#: Random numbers per picture: the crop's scale and place and the mirror, then those of each view's colours.
GEOMETRIC, PHOTOMETRIC = 4, 10
#: Probabilities of a colour change and of a blur (PiCIE's code).
CHANGED, BLURRED = 0.8, 0.5
#: The blur's least and greatest deviation in pixels of a picture of 320 (PiCIE's code has U[0.1, 2] in mind).
BLUR = (0.1, 2.0)


class Views:
    """The views of the pictures ``index`` (B,) in one epoch, the same at every call and on any device.

    Args:
        jitter: brightness, contrast and saturation change by factors of 1 - jitter to 1 + jitter (PiCIE's code: 0.3).
        hue: the hue turns by up to this share of the circle (PiCIE's code: 0.1), at most 0.5.
        smallest_crop: the geometric change keeps a square of this to 1 of the side (PiCIE's code: 0.5), and mirrors
            half of the pictures.

    Attributes:
        theta: (B, 2, 3) float32, the geometric change as :func:`cmx_fast.nn.warp` takes it.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self,
        index: Tensor,
        *,
        seed: int,
        epoch: int,
        jitter: float = 0.3,
        hue: float = 0.1,
        smallest_crop: float = 0.5,
        device: torch.device | str = "cpu",
    ):
        for name, value, most in (
            ("jitter", jitter, 1.0),
            ("hue", hue, 0.5),
            ("smallest_crop", smallest_crop, 1.0),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be in [0, {most}]; got {value}")
        self.jitter, self.hue = jitter, hue
        generator = torch.Generator()
        drawn = []
        for picture in index.tolist():
            generator.manual_seed(((seed * 1_000_003 + epoch) * 1_000_003 + picture) % 2**63)
            drawn.append(torch.rand(GEOMETRIC + 2 * PHOTOMETRIC, generator=generator))
        geometric, *self.colours = upload(torch.stack(drawn), device).split(
            [GEOMETRIC, PHOTOMETRIC, PHOTOMETRIC], 1
        )
        scale = 1 - (1 - smallest_crop) * geometric[:, 0]
        self.theta = torch.zeros(len(index), 2, 3, device=device)
        self.theta[:, 0, 0] = torch.where(geometric[:, 3] < 0.5, scale, -scale)
        self.theta[:, 1, 1] = scale
        self.theta[:, :, 2] = (2 * geometric[:, 1:3] - 1) * (1 - scale)[:, None]

    def geometric(self, images: Tensor) -> Tensor:
        """Crop maps (B, C, h, w), resize them to the same size, and mirror some."""
        return warp(images, self.theta)

    def photometric(self, images: Tensor, view: int) -> Tensor:
        """Give pictures (B, 3, H, W) in [0, 1] the colours of view 1 or 2, again in [0, 1].

        Brightness, contrast, saturation and hue change in this order, each with probability 0.8 and by torchvision's
        definitions; a Gaussian blur follows with probability 0.5.
        """
        drawn = self.colours[view - 1]
        size = images.shape[-1]
        changed = drawn[:, 5:9] < CHANGED
        factor = torch.where(changed[:, :3], 1 + self.jitter * (2 * drawn[:, :3] - 1), 1.0)
        turn = torch.where(changed[:, 3], self.hue * (2 * drawn[:, 3] - 1), 0.0)
        brightness, contrast, saturation = factor[:, :, None, None, None].unbind(1)
        images = (images * brightness).clamp(0, 1)
        images = blend(images, grey(images).mean((2, 3), keepdim=True), contrast)
        images = blend(images, grey(images), saturation)
        images = turn_hue(images, turn)
        low, high = (sigma * size / 320 for sigma in BLUR)
        return blur(images, torch.where(drawn[:, 9] < BLURRED, low + (high - low) * drawn[:, 4], 0.0), high)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each picture (B, 3, H, W) by ``turn`` (B,) of the circle, as torchvision's adjust_hue does."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    red, green, blue = ((value - images) / safe).split(1, 1)
    largest = images.argmax(1, keepdim=True)
    hue = torch.where(largest == 0, blue - green, torch.where(largest == 1, 2 + red - blue, 4 + green - red))
    sector = hue + 6 * turn[:, None, None, None] + images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    sector = sector.remainder(6)
    return value - chroma * torch.minimum(sector, 4 - sector).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of each picture by its own ``sigma`` (B,) pixels, at most ``largest``; 0 leaves it as it is."""
    reach = math.ceil(3 * largest)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma[:, None].square().clamp_min(1e-8)))
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(3, 0)
    rows = F.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(rows, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(rows, kernel[:, None, None, :], groups=len(kernel)).view_as(images)
