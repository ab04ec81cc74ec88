"""Tasks of ``python -m benchmarks.learning`` in which a small part decides the class: RA-CNN, two-level attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.attention import AttentionProposal, RecurrentAttentionCrop, TwoLevelAttention, ranking_loss

HELD_OUT = 256

#: Pixels of the pictures with small parts, of a mark, and of a patch.
LARGE, MARK, PATCH = 64, 9, 24


def small_parts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw discs (count, 3, 64, 64) with a small mark each, its stripes upright or lying.

    Returns the pictures, the classes (count,) and the marks' middles (count, 2).

    Another mark, off the disc, has stripes of either direction and does not count. At a quarter of the size the stripes
    are gone, at half of it nearly: their channel is noisy.
    """
    noise = torch.tensor([0.05, 0.05, 0.4])[:, None, None]
    pictures = noise * torch.randn(count, 3, LARGE, LARGE, generator=generator)
    steps = torch.arange(LARGE)
    kinds, others = torch.randint(2, (2, count), generator=generator)
    middles = torch.zeros(count, 2)
    reach = MARK // 2

    def draw(low: float, high: float) -> tuple[float, float]:
        x, y = (low + (high - low) * torch.rand(2, generator=generator)).tolist()
        return x, y

    def mark(i: int, u: int, v: int, kind: int) -> None:
        along = (steps[:MARK] % 2) * 2.0 - 1
        stripes = along[None] if kind else along[:, None]
        hann = torch.hann_window(MARK + 2, periodic=False)[1:-1]
        rows, columns = slice(v - reach, v + reach + 1), slice(u - reach, u + reach + 1)
        pictures[i, 0, rows, columns] += 0.7
        pictures[i, 2, rows, columns] += 0.5 + stripes * hann[None] * hann[:, None]

    for i in range(count):
        x, y = draw(24, 40)
        pictures[i, 1] += 0.5 * ((steps[None] - x) ** 2 + (steps[:, None] - y) ** 2 < 20**2)
        u, v = (int(c + d) for c, d in zip((x, y), draw(-10, 10), strict=True))
        mark(i, u, v, int(kinds[i]))
        middles[i] = torch.tensor([u, v]) / LARGE
        while True:
            u, v = (int(c) for c in draw(reach, LARGE - reach))
            if (u - x) ** 2 + (v - y) ** 2 > 27**2:
                break
        mark(i, u, v, int(others[i]))
    return pictures, kinds, middles


def _small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(32, 2),
    )  # fmt: skip


def find_the_part(steps: int) -> tuple[float, float, float, float]:
    """Train RA-CNN on :func:`small_parts`.

    Returns the accuracy of the window and of the whole picture at a quarter of its size, and the shares of pictures
    whose mark is in the window and in a window of its size in the middle.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pictures, kinds, _ = small_parts(1024, generator)
    features = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2),
    )  # fmt: skip
    propose, crop = AttentionProposal(16 * 16, 64), RecurrentAttentionCrop(32, steepness=0.5, least=0.12)
    with torch.no_grad():  # a third of the side
        list(propose.parameters())[-1][2] = -1.66
    whole, close = _small_network(), _small_network()
    classify = torch.optim.Adam([*whole.parameters(), *close.parameters()], 2e-3)
    propose_optimizer = torch.optim.Adam([*features.parameters(), *propose.parameters()], 1e-3)

    def both(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        window = propose(features(batch))
        return whole(F.avg_pool2d(batch, 4)), close(crop(batch, window)), window

    for step in range(steps):
        index = torch.randint(len(pictures), (64,), generator=generator)
        coarse, fine, _ = both(pictures[index])
        # In turns the scales learn to classify, and the proposal to make the finer scale surer.
        if step % 2 == 0:
            loss, optimizer = (
                F.cross_entropy(coarse, kinds[index]) + F.cross_entropy(fine, kinds[index]),
                classify,
            )
        else:
            loss, optimizer = ranking_loss([coarse.detach(), fine], kinds[index], 0.5), propose_optimizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, kinds, middles = small_parts(HELD_OUT, torch.Generator().manual_seed(1))
    with torch.no_grad():
        coarse, fine, window = both(pictures)
    middle, half = crop.window(window)
    right = [100 * float((x.argmax(1) == kinds).double().mean()) for x in (fine, coarse)]
    held = [
        100 * float(((place - middles).abs() < half[:, None]).all(1).double().mean())
        for place in (middle, torch.full_like(middle, 0.5))
    ]
    return right[0], right[1], held[0], held[1]


def choose_patches(steps: int) -> tuple[float, float, float]:
    """Train two-level attention on :func:`small_parts` cut into 25 patches.

    Returns the accuracy with the selected patches and with all, and the share of selected patches that hold the mark.
    The filter is trained to tell the patches that hold it.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[x, y] for y in range(0, 41, 10) for x in range(0, 41, 10)])

    def patches(pictures: Tensor) -> Tensor:
        return torch.stack([pictures[:, :, y : y + PATCH, x : x + PATCH] for x, y in corners.tolist()], 1)

    def shows(middles: Tensor) -> Tensor:
        off = (LARGE * middles[:, None] - corners - PATCH / 2).abs()
        return (off <= (PATCH - MARK) / 2).all(2)

    pictures, kinds, middles = small_parts(512, generator)
    model = TwoLevelAttention(_small_network(), _small_network(), [1])
    everything = _small_network()
    optimizer = torch.optim.Adam([*model.parameters(), *everything.parameters()], 2e-3)

    def all_patches(cut: Tensor) -> Tensor:
        return everything(cut.flatten(0, 1)).softmax(1).unflatten(0, cut.shape[:2]).mean(1)

    for _ in range(steps):
        index = torch.randint(len(pictures), (16,), generator=generator)
        cut, kind = patches(pictures[index]), kinds[index]
        filtered = F.cross_entropy(
            model.filter_net(cut.flatten(0, 1)), shows(middles[index]).long().flatten()
        )
        loss = filtered + F.nll_loss(model(cut).log(), kind) + F.nll_loss(all_patches(cut).log(), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, kinds, middles = small_parts(HELD_OUT, torch.Generator().manual_seed(1))
    cut = patches(pictures)
    with torch.no_grad():
        right = [100 * float((p.argmax(1) == kinds).double().mean()) for p in (model(cut), all_patches(cut))]
        held = (model.selected(cut) & shows(middles)).any(1)
    return right[0], right[1], 100 * float(held.double().mean())
