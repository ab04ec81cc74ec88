"""FCAN: attention maps from which glimpses of a few parts are drawn, each map learnt by the reward of its glimpse."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartSequence(NamedTuple):
    """The record of glimpses of T parts in B maps.

    Attributes:
        log_probabilities: (T + 1, B, classes) by the whole map, and then with one part more each.
        maps: (B, T, h, w), the probability of each part's glimpse at each place.
        locations: (T, B, 2) int64, the row and column of each glimpse.
        log_policy: (T, B), the logarithm of the probability of the location chosen.
    """

    log_probabilities: Tensor
    maps: Tensor
    locations: Tensor
    log_policy: Tensor


class PartAttention(nn.Module):
    """Liu et al., "Fully Convolutional Attention Networks for Fine-Grained Recognition", 2016 (FCAN).

    Maps (B, C, h, w) of a feature network to :class:`PartSequence`. For each part two convolutions and a softmax over
    the places give a map, from which training draws the place of a glimpse and evaluation takes the likeliest. A
    glimpse is the mean of the features around its place; since the features are computed once, parts cost next to
    nothing. The whole map and every part have a classifier, whose probabilities are averaged.

    Args:
        channels: C. classes. parts: T (2 [O]). size: places a side of a glimpse, odd (3 [O]).
        hidden: channels between the two convolutions (64 [O]).

    Raises:
        ValueError: no part, an even size, or a map of other channels.
    """

    def __init__(self, channels: int, classes: int, parts: int = 2, size: int = 3, hidden: int = 64):
        super().__init__()
        if parts < 1 or size < 1 or size % 2 == 0:
            raise ValueError(f"parts must be at least 1 and size odd, got {parts} and {size}")
        self.channels, self.size = channels, size
        self.attend = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1)
            )
            for _ in range(parts)
        )
        self.classifiers = nn.ModuleList(nn.Linear(channels, classes) for _ in range(parts + 1))

    def forward(self, x: Tensor) -> PartSequence:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, h, w), got {tuple(x.shape)}")
        width = x.shape[3]
        logits = torch.cat([attend(x) for attend in self.attend], 1).flatten(2)  # (B, T, h w)
        log_maps = logits.log_softmax(2)
        with torch.no_grad():
            if self.training:
                flat = torch.multinomial(log_maps.exp().flatten(0, 1), 1).view(log_maps.shape[:2])
            else:
                flat = log_maps.argmax(2)
        around = F.avg_pool2d(x, self.size, 1, self.size // 2, count_include_pad=False).flatten(2)
        glimpses = around.gather(2, flat[:, None].expand(-1, self.channels, -1)).unbind(2)
        seen = [x.mean((2, 3)), *glimpses]
        scores = torch.stack(
            [layer(features).log_softmax(1) for layer, features in zip(self.classifiers, seen, strict=True)]
        )
        counts = torch.arange(1, len(seen) + 1, device=x.device, dtype=scores.dtype)
        return PartSequence(
            scores.logcumsumexp(0) - counts.log()[:, None, None],
            log_maps.exp().unflatten(2, x.shape[2:]),
            torch.stack([flat // width, flat % width], 2).transpose(0, 1),
            log_maps.gather(2, flat[..., None])[..., 0].T,
        )


def part_attention_loss(sequence: PartSequence, labels: Tensor, weight: float = 1.0) -> Tensor:
    """The negative log-likelihood with all parts and ``weight`` times REINFORCE with FCAN's greedy reward; 0-d.

    A glimpse is paid at once, and not at the end of the sequence: 1 if the class is right with it and, but for the
    first, likelier than without it; else 0. The weight is ours.
    """
    part_scores = sequence.log_probabilities.detach()[1:]  # (T, B, classes)
    right = part_scores.argmax(2) == labels
    likelihood = part_scores.gather(2, labels.expand(part_scores.shape[:2])[..., None])[..., 0]
    likelier = likelihood.diff(dim=0, prepend=torch.full_like(likelihood[:1], -torch.inf)) > 0
    reinforce = -(sequence.log_policy * (right & likelier)).sum(0).mean()
    return F.nll_loss(sequence.log_probabilities[-1], labels) + weight * reinforce
