"""RA-CNN: a network proposes a window of its input, and the next network sees the window, enlarged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionProposal(nn.Module):
    """Proposes windows: features (B, C, h, w) to windows (B, 3) in (0, 1).

    A window is its middle's x and y and half its side, as shares of the picture's side.

    Two layers, tanh between and a sigmoid after (eq. 3 of the paper; widths the common code's).
    """

    def __init__(self, features: int, hidden: int = 1024):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 3), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class RecurrentAttentionCrop(nn.Module):
    """Fu et al., "Look Closer to See Better", CVPR 2017, eqs. 4 to 6: a window, cut softly and enlarged.

    Pictures (B, C, H, W) and windows (B, 3) to (B, C, size, size). The picture is multiplied by the product of
    differences of logistic functions along both sides, whose steepness lets a gradient reach the window, and read
    bilinearly there.

    Args:
        size: side of the result. steepness: k, per pixel (10, the paper's).
        least: the smallest half side, a share of the picture's side (1/3, the common code's).
    """

    def __init__(self, size: int, steepness: float = 10.0, least: float = 1 / 3):
        super().__init__()
        if size < 1 or steepness <= 0 or not 0 < least <= 0.5:
            raise ValueError("size must be at least 1, steepness positive and least in (0, 0.5]")
        self.size, self.steepness, self.least = size, steepness, least

    def window(self, proposal: Tensor) -> tuple[Tensor, Tensor]:
        """Middles (B, 2) and half sides (B,) within the picture, as shares of its side."""
        half = proposal[:, 2].clamp(self.least, 0.5)
        middle = torch.minimum(torch.maximum(proposal[:, :2], half[:, None]), 1 - half[:, None])
        return middle, half

    def mask(self, proposal: Tensor, height: int, width: int) -> Tensor:
        """The window of eq. 5, (B, 1, H, W), close to 1 inside and to 0 outside."""
        middle, half = self.window(proposal)
        sides = []
        for axis, length in ((1, height), (0, width)):
            place = torch.arange(length, device=proposal.device, dtype=proposal.dtype) + 0.5
            low, high = ((middle[:, axis] + sign * half)[:, None] * length for sign in (-1, 1))
            inside = torch.sigmoid(self.steepness * (place - low)) - torch.sigmoid(
                self.steepness * (place - high)
            )
            sides.append(inside)
        return (sides[0][:, :, None] * sides[1][:, None, :])[:, None]

    def forward(self, picture: Tensor, proposal: Tensor) -> Tensor:
        if proposal.shape != (picture.shape[0], 3):
            raise ValueError(f"proposal must have shape ({picture.shape[0]}, 3), got {tuple(proposal.shape)}")
        middle, half = self.window(proposal)
        steps = (torch.arange(self.size, device=picture.device, dtype=picture.dtype) + 0.5) / self.size
        x, y = (2 * (middle[:, axis, None] + half[:, None] * (2 * steps - 1)) - 1 for axis in (0, 1))
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), 3)
        seen = picture * self.mask(proposal, *picture.shape[2:])
        return F.grid_sample(seen, grid, padding_mode="border", align_corners=False)


def ranking_loss(logits: Sequence[Tensor], labels: Tensor, margin: float = 0.05) -> Tensor:
    """The loss of eq. 9: each scale's probability of the right class is to exceed the scale before by ``margin``; 0-d.

    Args:
        logits: (B, classes) of each scale, coarse to fine. The common code ranks logits; the paper probabilities.
    """
    if len(logits) < 2:
        raise ValueError(f"logits must be of at least two scales, got {len(logits)}")
    right = [scale.softmax(1).gather(1, labels[:, None])[:, 0] for scale in logits]
    pairs = [F.relu(before - after + margin) for before, after in itertools.pairwise(right)]
    return torch.stack(pairs).sum(0).mean()
