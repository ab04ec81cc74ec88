"""SpecAugment: bands of frequency and time masked, and time warped, at random in each spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmx_fast.ops import warp_and_mask


class SpecAugment(nn.Module):
    """Masks and warps spectrograms ``(B, bands, frames)`` while training; in ``eval`` they pass as they are.

    Each sample on its own: time is warped first, ``freq_masks`` bands and ``time_masks`` stretches of frames are set
    to 0 afterwards (so put it behind the normalisation, where 0 is the mean). Widths are uniform over 0 to
    ``freq_width`` (``time_width``), places uniform over all that fit. Warping moves a frame, at least ``warp`` from
    either end, by up to ``warp`` frames and stretches the frames before and behind it linearly (Park et al. 2019,
    section 2); spectrograms of at most ``2 * warp`` frames are left alone.

    The mask defaults are those of GDT's code ("medium"); CMAC warps too, without saying by how much: 5 is ours.
    Everything is drawn on the CPU from ``generator`` (default: torch's own), so devices agree.

    Raises:
        ValueError: a negative setting; a spectrogram of another shape, or narrower than a mask can be.
    """

    def __init__(
        self,
        freq_masks: int = 1,
        freq_width: int = 3,
        time_masks: int = 1,
        time_width: int = 6,
        warp: int = 5,
    ) -> None:
        super().__init__()
        for name, value in (
            ("freq_masks", freq_masks),
            ("freq_width", freq_width),
            ("time_masks", time_masks),
            ("time_width", time_width),
            ("warp", warp),
        ):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width = time_masks, time_width
        self.warp = warp

    def forward(self, spectrogram: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if spectrogram.ndim != 3 or not spectrogram.is_floating_point():
            raise ValueError(
                f"spectrogram must be float (B, bands, frames), got {spectrogram.dtype} of shape "
                f"{tuple(spectrogram.shape)}"
            )
        count, bands, frames = spectrogram.shape
        if bands < self.freq_width or frames < self.time_width:
            raise ValueError(
                f"spectrogram has {bands} bands and {frames} frames; masks are up to freq_width={self.freq_width} "
                f"and time_width={self.time_width} wide"
            )
        if not self.training:
            return spectrogram
        masks = self.freq_masks + self.time_masks
        shape = (count, 2 + 2 * masks)
        # torch.compile can't trace rand with a generator, not even with None.
        drawn = torch.rand(shape) if generator is None else torch.rand(shape, generator=generator)
        by_device = drawn.to(spectrogram.device, non_blocking=True)
        time = torch.arange(frames, device=spectrogram.device, dtype=torch.float32)
        position = time.expand(count, -1)
        if 0 < 2 * self.warp < frames:
            position = warped(time, by_device[:, 0], by_device[:, 1], self.warp)
        freq, duration = (
            by_device[:, 2:].unflatten(1, (masks, 2)).split([self.freq_masks, self.time_masks], 1)
        )
        return warp_and_mask(
            spectrogram,
            position,
            stripes(freq, bands, self.freq_width),
            stripes(duration, frames, self.time_width),
        )


def stripes(drawn: Tensor, length: int, width: int) -> Tensor:
    """The cells, of ``length``, under the masks of ``drawn`` (B, masks, 2) in [0, 1): bool (B, length)."""
    widths = (drawn[..., :1] * (width + 1)).floor()
    starts = (drawn[..., 1:] * (length - widths + 1)).floor()
    cells = torch.arange(length, device=drawn.device)
    return ((cells >= starts) & (cells < starts + widths)).any(1)


def warped(time: Tensor, where: Tensor, how_far: Tensor, reach: int) -> Tensor:
    """The frames (B, T) seen at each ``time`` (T,) where one frame of each sample moves by up to ``reach`` frames.

    Those before and behind it are stretched linearly; ``where`` and ``how_far`` are (B,) numbers in [0, 1).
    """
    last = time.shape[0] - 1
    source = (reach + where * (last - 2 * reach))[:, None]
    target = source + (2 * how_far - 1)[:, None] * reach
    before = time * source / target.clamp_min(1e-6)
    behind = last - (last - time) * (last - source) / (last - target).clamp_min(1e-6)
    return torch.where(time < target, before, behind).clamp(0, last)
