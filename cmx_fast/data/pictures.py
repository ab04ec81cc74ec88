"""One split's pictures as batches by index, from memory or by loader workers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .worker_loader import load_batches

Loaded = tuple[Tensor, Tensor]


class Pictures:
    """``dataset`` is a :class:`cmx_fast.data.atr.ATR`, or anything with ``__len__`` and ``load_image(i)``.

    With ``cache`` every picture is decoded once and kept, in bytes; else workers read files.
    """

    def __init__(self, dataset: Any, *, cache: bool = False, device: torch.device | str = "cpu"):
        self.dataset, self.device = dataset, torch.device(device)
        self.kept = torch.stack([dataset.load_image(i) for i in range(len(dataset))]) if cache else None

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, rows: Iterable[Tensor]) -> Iterator[Loaded]:
        """For each of ``rows``, (B,) int64: the same, and their pictures (B, 3, S, S) in [0, 1] on the device."""
        loader: Iterable[Loaded]
        if self.kept is not None:
            loader = ((batch, self.kept[batch]) for batch in rows)
        else:
            loader = load_batches(
                _Images(self.dataset),
                (batch.tolist() for batch in rows),
                workers=min(8, os.cpu_count() or 1),
                pin_memory=self.device.type == "cuda",
            )
        for index, images in loader:
            yield index, images.to(self.device, non_blocking=True).float() / 255

    def in_order(self, batch: int = 32) -> Iterator[Loaded]:
        """Every picture once."""
        return self.load(torch.arange(len(self)).split(batch))


class _Images(Dataset[tuple[int, Tensor]]):
    """Pictures with their index, without their masks."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.dataset.load_image(index)
