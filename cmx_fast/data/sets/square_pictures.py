"""The frame of data sets of pictures: files that become squares of one size, and the answers that belong to them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from cmx_fast.data.media.files import stretched


class SquarePictures(Dataset[dict[str, object]]):
    """Pictures by number, upright and resized to ``size`` x ``size``.

    Attributes:
        ids: the names, in order. class_names: by number.
        skipped: (file, reason) of pictures that were left out.
        DRAFT: JPEG files much larger than the square may be decoded at a part of their size.

    Raises:
        ValueError: a size below 1.
    """

    DRAFT: ClassVar[bool] = True
    ids: list[str]
    skipped: list[tuple[Path, str]]

    def __init__(self, size: int, class_names: Sequence[str]):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size, self.class_names = size, list(class_names)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        """The item: image uint8 (3, S, S), the tensors of :meth:`target`, id."""
        return {"image": self.load_image(index), **self.target(index), "id": self.ids[index]}

    def path(self, index: int) -> Path:
        """The picture's file."""
        raise NotImplementedError

    def target(self, index: int) -> dict[str, Tensor]:
        """The answer that a network should give."""
        raise NotImplementedError

    def load_image(self, index: int) -> Tensor:
        """The picture alone, uint8 (3, S, S)."""
        return stretched(self.path(index), self._square, draft=self.DRAFT)

    def load_images(self, indices: Sequence[int], threads: int = 1) -> list[Tensor]:
        """The pictures as by :meth:`load_image`, decoded together by DALI and left on the GPU if there is one."""
        dali = importlib.import_module("cmx_fast.data.media.decode_dali_files")
        decoded = dali.stretched([self.path(index) for index in indices], self._square, threads)
        return [
            self.load_image(index) if image is None else image
            for index, image in zip(indices, decoded, strict=True)
        ]

    def _square(self, path: Path, width: int, height: int) -> tuple[int, int]:
        return self.size, self.size
