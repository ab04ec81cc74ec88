"""Two-level attention: selects the patches that show the object, and the places of its parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Steps and starts of the grouping's k-means.
GROUPING_STEPS, STARTS = 50, 8


class TwoLevelAttention(nn.Module):
    """Xiao et al., "The Application of Two-level Attention Models in Deep Convolutional Neural Network", CVPR 2015.

    Object level: ``filter_net`` gives each patch's probability of the broad class (a bird of any kind). ``domain_net``
    classifies the patches whose probability is high enough, and their scores are averaged. Part level: filters of one
    of ``domain_net``'s layers are grouped by the likeness of their weights (spectral clustering). A group is a part
    detector, whose best place in the maps is that part.

    Args:
        filter_net: patches (B, C, H, W) to logits (B, broad classes).
        domain_net: patches to logits (B, classes).
        relevant: broad classes that count.
        threshold: probability from which a patch is kept; a picture without such a patch keeps its best one.
    """

    def __init__(
        self, filter_net: nn.Module, domain_net: nn.Module, relevant: list[int], threshold: float = 0.5
    ):
        super().__init__()
        if not relevant or not 0 <= threshold <= 1:
            raise ValueError("relevant must name a class at least, and threshold be in [0, 1]")
        self.filter_net, self.domain_net = filter_net, domain_net
        self.relevant, self.threshold = relevant, threshold

    def selected(self, patches: Tensor) -> Tensor:
        """A mask (B, P) bool of the patches (B, P, C, H, W) that show the object."""
        probability = self.filter_net(patches.flatten(0, 1)).softmax(1)[:, self.relevant].sum(1)
        probability = probability.view(patches.shape[:2])
        numbers = torch.arange(patches.shape[1], device=patches.device)
        best = probability.argmax(1, keepdim=True) == numbers
        return (probability >= self.threshold) | best

    def forward(self, patches: Tensor) -> Tensor:
        """Mean class probabilities (B, classes) over the selected ones of patches (B, P, C, H, W)."""
        if patches.dim() != 5:
            raise ValueError(f"patches must have shape (B, P, C, H, W), got {tuple(patches.shape)}")
        with torch.no_grad():
            chosen = self.selected(patches).to(patches.dtype)
        scores = self.domain_net(patches.flatten(0, 1)).softmax(1).unflatten(0, patches.shape[:2])
        return (scores * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True)


def group_filters(weight: Tensor, groups: int = 3) -> Tensor:
    """The group of each filter of a convolution's weight (F, C, kh, kw), (F,) int64, by spectral clustering.

    The likeness of two filters is their cosine, negative ones 0. Deterministic.

    Raises:
        ValueError: fewer filters than groups.
    """
    count = len(weight)
    if not 1 <= groups <= count:
        raise ValueError(f"groups must be in [1, {count}], the number of filters; got {groups}")
    unit = F.normalize(weight.detach().flatten(1).double(), dim=1)
    likeness = (unit @ unit.T).clamp_min(0).fill_diagonal_(0)
    degree = likeness.sum(1).clamp_min(1e-12).rsqrt()
    _, vectors = torch.linalg.eigh(degree[:, None] * likeness * degree[None])
    points = F.normalize(vectors[:, -groups:], dim=1)
    generator = torch.Generator().manual_seed(0)
    groupings = [_group(points, groups, generator) for _ in range(STARTS)]
    return min(groupings, key=lambda one: one[0])[1]


def _group(points: Tensor, groups: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """Run k-means from a spread-out start; returns the sum of squared distances and the groups."""
    first = int(torch.randint(len(points), (), generator=generator))
    chosen = [first]
    while len(chosen) < groups:
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    centres = points[chosen]
    for _ in range(GROUPING_STEPS):
        distance, label = torch.cdist(points, centres).square().min(1)
        one_hot = F.one_hot(label, groups).to(points.dtype)
        sums, counts = one_hot.T @ points, one_hot.sum(0)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return float(distance.sum()), label


def part_places(maps: Tensor, groups: Tensor, count: int) -> Tensor:
    """The place of each filter group's largest answer: maps (B, F, h, w) to (B, count, 2) rows and columns, int64."""
    if groups.shape != (maps.shape[1],):
        raise ValueError(f"groups must have shape ({maps.shape[1]},), got {tuple(groups.shape)}")
    members = F.one_hot(groups, count).to(maps.dtype)
    answers = torch.einsum("bfhw,fg->bghw", maps, members)
    best = answers.flatten(2).argmax(2)
    return torch.stack([best // maps.shape[3], best % maps.shape[3]], 2)
