"""RA-CNN: a network proposes a window of its input, and the next network sees the window, enlarged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


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


class ScaleSequence(NamedTuple):
    """The record of a picture seen at S scales, coarse to fine.

    Attributes:
        logits: (B, classes) of each scale.
        windows: (B, 3) of each scale but the last, as shares of that scale's picture.
    """

    logits: list[Tensor]
    windows: list[Tensor]


class RecurrentAttentionCNN(nn.Module):
    """RA-CNN whole: a network per scale, and between two scales a proposal and its window. Fu et al., CVPR 2017.

    Its two parts are trained in turns (section 3.4): the networks by the sum of the scales' cross-entropies while the
    windows stay, and the proposals by :func:`ranking_loss` while the networks stay. Before that the networks start from
    one pretrained network, and the proposals learn :func:`peak_windows` of the networks' maps.

    Args:
        features: of each scale, pictures to maps (the paper: three VGG-19).
        classifiers: of each scale, maps to logits (B, classes).
        proposals: of each scale but the last, maps to windows (B, 3); see :class:`AttentionProposal`.
        crop: cuts and enlarges the windows.

    Raises:
        ValueError: fewer than two scales, or numbers of modules that do not fit.
    """

    def __init__(
        self,
        features: Sequence[nn.Module],
        classifiers: Sequence[nn.Module],
        proposals: Sequence[nn.Module],
        crop: RecurrentAttentionCrop,
    ):
        super().__init__()
        scales = len(features)
        if scales < 2 or len(classifiers) != scales or len(proposals) != scales - 1:
            raise ValueError(
                "features and classifiers must be as many, at least 2, and proposals one fewer; got "
                f"{scales}, {len(classifiers)} and {len(proposals)}"
            )
        self.features, self.classifiers = nn.ModuleList(features), nn.ModuleList(classifiers)
        self.proposals, self.crop = nn.ModuleList(proposals), crop

    def forward(self, picture: Tensor, learner: str = "all") -> ScaleSequence:
        """See pictures (B, 3, H, W) at all scales.

        ``learner``: "networks" or "proposals": the parameters of the others get no gradient.
        """
        if learner not in ("all", "networks", "proposals"):
            raise ValueError(f"learner must be all, networks or proposals; got {learner!r}")
        run = _as_constants if learner == "proposals" else _run
        logits, windows = [], []
        for scale, (features, classifier) in enumerate(zip(self.features, self.classifiers, strict=True)):
            maps = run(features, picture)
            logits.append(run(classifier, maps))
            if scale == len(self.proposals):
                break
            window = self.proposals[scale](maps.detach() if learner == "networks" else maps)
            windows.append(window.detach() if learner == "networks" else window)
            picture = self.crop(picture, windows[-1])
        return ScaleSequence(logits, windows)

    def proposal_targets(self, picture: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The windows that are proposed and those of :func:`peak_windows`, of each scale but the last.

        They are for the proposals' first training; the networks get no gradient. A scale sees the proposed window.
        """
        windows, targets = [], []
        for features, proposal in zip(self.features[:-1], self.proposals, strict=True):
            with torch.no_grad():
                maps = features(picture)
            windows.append(proposal(maps))
            targets.append(peak_windows(maps))
            with torch.no_grad():
                picture = self.crop(picture, windows[-1])
        return windows, targets


def _run(module: nn.Module, x: Any) -> Any:
    return module(x)


def _as_constants(module: nn.Module, x: Any) -> Any:
    """Call a module whose parameters get no gradient; its input does."""
    return functional_call(module, {name: value.detach() for name, value in module.named_parameters()}, (x,))


def peak_windows(maps: Tensor) -> Tensor:
    """The windows (B, 3) of half the side in which maps (B, C, h, w) answer most, as shares of the side.

    RA-CNN's proposals learn them before they learn by ranking.
    """
    answers = maps.mean(1)
    sides = [max(1, length // 2) for length in maps.shape[2:]]
    for dim, side in enumerate(sides, 1):
        sums = torch.cat([torch.zeros_like(answers.narrow(dim, 0, 1)), answers.cumsum(dim)], dim)
        count = answers.shape[dim] - side + 1
        answers = sums.narrow(dim, side, count) - sums.narrow(dim, 0, count)
    best, columns = answers.flatten(1).argmax(1), answers.shape[2]
    x, y = (
        (corner + side / 2) / length
        for corner, side, length in (
            (best % columns, sides[1], maps.shape[3]),
            (best // columns, sides[0], maps.shape[2]),
        )
    )
    return torch.stack([x, y, torch.full_like(x, 0.25)], 1).to(maps.dtype)
