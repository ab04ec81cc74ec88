"""The base of the classes that segment pictures by a trained model: any size in, a label for every pixel out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.data.media.files import stretched
from cmx_fast.train.trained_model import Tower, TrainedModel

#: Pictures that go through the network at a time.
BATCH = 16
#: Numbers of the enlarged scores that are in memory at a time: 256 MB.
ENLARGED = 2**26


class PictureSegmenter(TrainedModel):
    """Pictures as maps of classes.

    Attributes:
        classes: the names of the labels.
        size: pixels of the squares that the network sees; pictures are stretched to them, as in training.
        class_of: (K,) int64, the label of each of the network's scores.
    """

    TASK = "image-segmentation"

    class_of: Tensor

    def __init__(self, classes: Sequence[str], class_of: Sequence[int], size: int):
        super().__init__()
        self.classes, self.size = tuple(classes), size
        self.register_buffer("class_of", torch.tensor(class_of), persistent=False)

    def scores(self, picture: Tensor) -> Tensor:
        """The scores (B, K, h, w) of pictures (B, 3, size, size) in [0, 1], on a grid coarser than the pictures."""
        raise NotImplementedError

    def towers(self) -> dict[str, tuple[Tower, Tensor]]:
        """ "image": :meth:`scores`."""
        parts = {"network": self.trained(), "encoder": self.encoder}
        return {"image": (Tower(self.scores, parts), torch.rand(2, 3, self.size, self.size))}

    @torch.no_grad()
    def segment(self, picture: Tensor) -> Tensor:
        """Labels (B, H, W) int64, numbers of ``classes``, of pictures (B, 3, H, W), float in [0, 1], of any size.

        A pixel's label is that of the largest score, bilinearly enlarged to the picture.

        Raises:
            ValueError: another shape or dtype.
        """
        if picture.dim() != 4 or picture.shape[1] != 3 or not picture.is_floating_point():
            raise ValueError(
                f"picture must be float (B, 3, H, W) in [0, 1], got {picture.dtype} {tuple(picture.shape)}"
            )
        height, width = picture.shape[2:]
        side = (self.size, self.size)
        parts = []
        for part in picture.split(BATCH):
            if part.shape[2:] != side:
                part = F.interpolate(part, side, mode="bilinear", antialias=True)
            parts.append(self._labels(part, (height, width)))
        return torch.cat(parts)

    @torch.no_grad()
    def segment_file(self, file: Path | str) -> Tensor:
        """Labels (H, W) int64, on the CPU, of a picture file, upright.

        Raises:
            BrokenFileError: the file can't be decoded.
        """
        sides: list[tuple[int, int]] = []

        def square(path: Path, width: int, height: int) -> tuple[int, int]:
            sides.append((height, width))
            return self.size, self.size

        picture = stretched(Path(file), square).to(self.device)
        return self._labels(picture[None].float() / 255, sides[0])[0].cpu()

    def _labels(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        return self.class_of[largest_enlarged(self.scores(picture).float(), size)]


def largest_enlarged(scores: Tensor, size: tuple[int, int], numbers: int = ENLARGED) -> Tensor:
    """The channel of the largest score (B, K, h, w) at every pixel of ``size``, enlarged bilinearly: (B, *size) int64.

    Channels are enlarged a few at a time, ``numbers`` of numbers: a photograph of 12 megapixels in 40 channels would
    be 2 GB. Of equal scores the first counts.
    """
    count = max(1, numbers // (len(scores) * size[0] * size[1]))
    best, channel = F.interpolate(scores[:, :count], size, mode="bilinear").max(1)
    for start in range(count, scores.shape[1], count):
        value, index = F.interpolate(scores[:, start : start + count], size, mode="bilinear").max(1)
        channel = torch.where(value > best, index + start, channel)
        best = torch.maximum(value, best)
    return channel
