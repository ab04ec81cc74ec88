"""Square views of clips: cropped, mirrored and recoloured at random, or centred, with the way from frame to view."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast.data.loaders.clip_reader import AUGMENTED, random_stream
from cmx_fast.data.loaders.upload import upload
from cmx_fast.data.transforms.window import check_window
from cmx_fast.ops import prepare_frames

#: Mean and deviation that bring pixel values in [0, 1] to about [-2, 2] (GDT's code).
MEAN, STD = 0.45, 0.225


class CentreCrop:
    """The largest centred square of each clip, resized to ``crop`` pixels.

    Args:
        sizes: (B, 2), height and width of each clip in pixels: "size" of a batch of
            :class:`cmx_fast.data.loaders.clips.Clips`, on the host, so that no view waits for the device that
            prepares it.
        crop: side of the views; 128 is CMAC's.
        window: left, top, width and height of the part of every frame that is seen, as shares of its width and height;
            empty: all of it.

    Attributes:
        left, top, side: (B,) float32, each clip's window in pixels of its frames.
        mirrored: (B,) bool.
        factors: (B, 3), brightness, contrast and saturation; None leaves colours as they are.

    Raises:
        ValueError: ``sizes`` of another shape, a window that is not in the frame, or frames that are smaller than
            ``sizes`` says or not uint8.
    """

    factors: Tensor | None = None

    def __init__(self, sizes: Tensor, *, crop: int = 128, window: tuple[float, ...] = ()):
        if sizes.ndim != 2 or sizes.shape[1] != 2:
            raise ValueError(f"sizes must be (B, 2), height and width, got shape {tuple(sizes.shape)}")
        if crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}")
        check_window(window)
        self.crop, self.sizes = crop, sizes.cpu().float()
        height, width = self.sizes.unbind(1)
        left, top, of_width, of_height = window or (0.0, 0.0, 1.0, 1.0)
        #: Corner, width and height of what is seen, in pixels of the frames.
        self.seen = (left * width, top * height, of_width * width, of_height * height)
        self.side = torch.minimum(*self.seen[2:])
        self.left = self.seen[0] + (self.seen[2] - self.side) / 2
        self.top = self.seen[1] + (self.seen[3] - self.side) / 2
        self.mirrored = torch.zeros(len(sizes), dtype=torch.bool)

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, 3, h, w) to float32 (B, 3, T, crop, crop), bilinear, as (x / 255 - 0.45) / 0.225.

        All frames of a clip get the same window and colours.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames must be uint8 (B, T, 3, h, w), got {frames.dtype} of shape {tuple(frames.shape)}"
            )
        if len(frames) != len(self.sizes) or (self.sizes.amax(0) > torch.tensor(frames.shape[3:])).any():
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} can't hold {len(self.sizes)} clips of these sizes: "
                f"{self.sizes.int().tolist()}"
            )
        boxes = torch.stack([self.left, self.top, self.side, self.side], 1)
        return prepare_frames(
            frames,
            upload(boxes, frames.device),
            size=self.crop,
            image_sizes=upload(self.sizes.int(), frames.device),
            flip=upload(self.mirrored, frames.device),
            jitter=None if self.factors is None else upload(self.factors, frames.device),
            mean=MEAN,
            std=STD,
        )

    def places(self, points: Tensor) -> Tensor:
        """The places in the views of points (B, P, 2) of the frames; outside [0, 1] they are cut off.

        Both are shares (x, y) of width and height, so the frames may have been resized before.
        """
        inside = points * self.sizes.flip(1)[:, None] - torch.stack([self.left, self.top], 1)[:, None]
        x, y = (inside / self.side[:, None, None]).unbind(2)
        return torch.stack([torch.where(self.mirrored[:, None], 1 - x, x), y], 2)


class ClipViews(CentreCrop):
    """A random square of each clip of recordings ``index`` (B,) in one epoch, the same at every call.

    The window's side is the shorter side's divided by a number uniform in 1 to ``1 / smallest_crop``: GDT's code
    resizes to 128 to 160 pixels and crops 128. Its place is uniform, and half of the windows are mirrored.

    Args:
        smallest_crop: the smallest window, a share of the shorter side (GDT's code: 128 / 160).
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
        window: tuple[float, ...] = (),
    ):
        super().__init__(sizes, crop=crop, window=window)
        if len(index) != len(sizes):
            raise ValueError(f"index and sizes must count the same clips, got {len(index)} and {len(sizes)}")
        if not 0 < smallest_crop <= 1:
            raise ValueError(f"smallest_crop must be in (0, 1], got {smallest_crop}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be in [0, 1], got {jitter}")
        rows = [
            torch.rand(7, generator=random_stream(seed, epoch, clip, AUGMENTED)) for clip in index.tolist()
        ]
        drawn = torch.stack(rows)
        left, top, width, height = self.seen
        self.side = self.side / (1 + drawn[:, 0] * (1 / smallest_crop - 1))
        self.left = left + drawn[:, 1] * (width - self.side)
        self.top = top + drawn[:, 2] * (height - self.side)
        self.mirrored = drawn[:, 3] < 0.5
        if jitter:
            self.factors = 1 + jitter * (2 * drawn[:, 4:] - 1)
