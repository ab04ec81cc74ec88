"""Occlusion: what a score loses without a part of its input, whatever the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Inputs that are scored at a time.
BATCH = 32


@torch.no_grad()
def occlusion(spectrogram: Tensor, score: Callable[[Tensor], Tensor], cells: tuple[int, int]) -> Tensor:
    """The fall of a score where a cell of a spectrogram (M, T) is replaced by its bands' means over time (Zeiler 2014).

    Args:
        score: from spectrograms (B, M, T) to (B,).
        cells: bands by times, of about equal sizes.

    Returns:
        float32 of shape ``cells``: the score of the whole less that without the cell.
    """
    rows, columns = (
        torch.arange(side, device=spectrogram.device) * count // side
        for side, count in zip(spectrogram.shape, cells, strict=True)
    )
    cell = rows[:, None] * cells[1] + columns
    mean = spectrogram.mean(1, keepdim=True).expand_as(spectrogram)
    without = [
        score(torch.where(cell == numbers[:, None, None], mean, spectrogram))
        for numbers in torch.arange(cells[0] * cells[1], device=cell.device).split(BATCH)
    ]
    return (score(spectrogram[None]) - torch.cat(without)).float().unflatten(0, cells)
