"""Square views of clips: cropped, mirrored and recoloured at random, or centred, with the way from frame to view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip_reader import AUGMENTED, random_stream
from .views import blend, grey

#: Pixel values in [0, 1] to about [-2, 2] (GDT's code).
MEAN, STD = 0.45, 0.225
#: Clips turned to floating point at a time: their frames as stored take four times the bytes of uint8.
_AT_ONCE = 8


class CentreCrop:
    """The largest centred square of each clip, resized to ``crop`` pixels.

    Args:
        sizes: (B, 2), height and width of each clip in pixels: "size" of a batch of :class:`cmx_fast.data.clips.Clips`.
        crop: side of the views; 128 is CMAC's.

    Attributes:
        left, top, side: (B,) float32, each clip's window in pixels of its frames.
        mirrored: (B,) bool.

    Raises:
        ValueError: ``sizes`` of another shape, or frames that are smaller than ``sizes`` says or not uint8.
    """

    def __init__(self, sizes: Tensor, *, crop: int = 128):
        if sizes.ndim != 2 or sizes.shape[1] != 2:
            raise ValueError(f"sizes must be (B, 2), height and width, got shape {tuple(sizes.shape)}")
        if crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}")
        self.crop, self.sizes = crop, sizes.float()
        height, width = self.sizes.unbind(1)
        self.side = torch.minimum(height, width)
        self.left, self.top = (width - self.side) / 2, (height - self.side) / 2
        self.mirrored = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, 3, h, w) to float32 (B, 3, T, crop, crop), bilinear, as (x / 255 - 0.45) / 0.225.

        All frames of a clip get the same window and colours.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames must be uint8 (B, T, 3, h, w), got {frames.dtype} of shape {tuple(frames.shape)}"
            )
        if (
            len(frames) != len(self.sizes)
            or (self.sizes.amax(0).cpu() > torch.tensor(frames.shape[3:])).any()
        ):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} can't hold {len(self.sizes)} clips of these sizes: "
                f"{self.sizes.int().tolist()}"
            )
        views = [
            F.grid_sample(part.flatten(1, 2).float(), grid, align_corners=False)
            for part, grid in zip(
                frames.split(_AT_ONCE), self._grid(*frames.shape[3:]).split(_AT_ONCE), strict=True
            )
        ]
        pictures = torch.cat(views).unflatten(1, (-1, 3)) / 255
        return ((self.recolour(pictures) - MEAN) / STD).transpose(1, 2).contiguous()

    def recolour(self, pictures: Tensor) -> Tensor:
        """(B, T, 3, S, S) in [0, 1] as it is."""
        return pictures

    def places(self, points: Tensor) -> Tensor:
        """Where points (B, P, 2) of the frames lie in the views; outside [0, 1]: cut off.

        Both as shares (x, y) of width and height, so that it does not matter how the frames were resized before.
        """
        inside = points * self.sizes.flip(1)[:, None] - torch.stack([self.left, self.top], 1)[:, None]
        x, y = (inside / self.side[:, None, None]).unbind(2)
        return torch.stack([torch.where(self.mirrored[:, None], 1 - x, x), y], 2)

    def _grid(self, height: int, width: int) -> Tensor:
        """The views' pixel centres (B, S, S, 2) in frames of this size, as grid_sample takes them."""
        steps = (torch.arange(self.crop, device=self.side.device) + 0.5) / self.crop
        across = torch.where(self.mirrored[:, None], 1 - steps, steps)
        high, wide = self.sizes.split(1, 1)
        # Not beyond the last pixel centres: what lies there may be the empty part of a frame.
        x = (self.left[:, None] + self.side[:, None] * across).clamp_min(0.5).minimum(wide - 0.5)
        y = (self.top[:, None] + self.side[:, None] * steps).clamp_min(0.5).minimum(high - 0.5)
        x, y = 2 * x / width - 1, 2 * y / height - 1
        return torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)


class ClipViews(CentreCrop):
    """A random square of each clip of recordings ``index`` (B,) in one epoch; the same whenever it is asked for.

    The window's side is the shorter side's divided by a number uniform in 1 to ``1 / smallest_crop``, which is what
    GDT's code does by resizing to 128 to 160 pixels and cropping 128; its place is uniform, and half are mirrored.

    Args:
        smallest_crop: of the shorter side (GDT's code: 128 / 160).
        jitter: brightness, contrast and saturation change, in this order, by factors of 1 - jitter to 1 + jitter;
            CMAC's final run has it (GDT's code: 0.4), its ablations have not.
    """

    def __init__(
        self,
        index: Tensor,
        sizes: Tensor,
        *,
        seed: int,
        epoch: int,
        crop: int = 128,
        smallest_crop: float = 0.8,
        jitter: float = 0.0,
    ):
        super().__init__(sizes, crop=crop)
        if len(index) != len(sizes):
            raise ValueError(f"index and sizes must count the same clips, got {len(index)} and {len(sizes)}")
        if not 0 < smallest_crop <= 1:
            raise ValueError(f"smallest_crop must be in (0, 1], got {smallest_crop}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be in [0, 1], got {jitter}")
        self.jitter = jitter
        rows = [
            torch.rand(7, generator=random_stream(seed, epoch, clip, AUGMENTED)) for clip in index.tolist()
        ]
        drawn = torch.stack(rows).to(sizes.device)
        height, width = self.sizes.unbind(1)
        self.side = self.side / (1 + drawn[:, 0] * (1 / smallest_crop - 1))
        self.left, self.top = drawn[:, 1] * (width - self.side), drawn[:, 2] * (height - self.side)
        self.mirrored = drawn[:, 3] < 0.5
        self.factors = 1 + jitter * (2 * drawn[:, 4:] - 1)

    def recolour(self, pictures: Tensor) -> Tensor:
        """(B, T, 3, S, S) in [0, 1] to the same."""
        if self.jitter == 0:
            return pictures
        brightness, contrast, saturation = self.factors.repeat_interleave(pictures.shape[1], 0)[
            :, :, None, None, None
        ].unbind(1)
        flat = (pictures.flatten(0, 1) * brightness).clamp(0, 1)
        flat = blend(flat, grey(flat).mean((2, 3), keepdim=True), contrast)
        return blend(flat, grey(flat), saturation).view_as(pictures)
