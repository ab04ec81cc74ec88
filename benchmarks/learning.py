"""What the attention modules learn that their baselines don't: ``python -m benchmarks.learning [--only ...]``.

Each task is made on the spot so that attention decides it; a module and its baseline are the same network but for the
module, trained the same way. Prints a table; minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmx_fast.nn.attention import (
    CBAM,
    AttentionProposal,
    ChannelAttention,
    ContextEncoding,
    NonLocal,
    ObjectContext,
    PositionAttention,
    RecurrentAttention,
    RecurrentAttentionCrop,
    SpatialTransformer,
    SqueezeAttention,
    SqueezeExcite,
    TwoLevelAttention,
    presence_loss,
    ranking_loss,
    recurrent_attention_loss,
)

#: Channels of the segmentation networks, and pixels of their pictures.
WIDTH, SIZE = 16, 24
HELD_OUT = 256


@dataclass(frozen=True)
class Row:
    """A figure in percent with its baseline's."""

    module: str
    task: str
    measure: str
    ours: float
    baseline: float | None = None


def marked_blobs(count: int, reach: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, S, S) of grey blobs, and labels (count, S, S): 0 background, 1 or 2 blob.

    A picture's blob is of a class that nothing near it tells: a marker of 2 x 2 pixels, red or blue, does, 3 to
    ``reach`` pixels from the edge of the blob. A network that sees less can't do better than guess.
    """
    pictures = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for i in range(count):
        kind = int(torch.randint(2, (), generator=generator))
        y, x = (int(v) for v in torch.randint(0, SIZE - 6, (2,), generator=generator))
        pictures[i, :, y : y + 6, x : x + 6] += 0.6
        labels[i, y : y + 6, x : x + 6] = 1 + kind
        while True:
            v, u = (int(w) for w in torch.randint(0, SIZE - 2, (2,), generator=generator))
            gap = max(y - v - 2, v - y - 6, x - u - 2, u - x - 6)
            if 3 <= gap <= reach:
                break
        pictures[i, 2 * kind, v : v + 2, u : u + 2] += 2.0
    return pictures, labels


class Segmenter(nn.Module):
    """Three convolutions, what stands between, and two more: without it, 9 pixels are seen."""

    def __init__(self, between: nn.Module):
        super().__init__()
        self.before = nn.Sequential(*_layer(3), *_layer(WIDTH))
        self.between = between
        self.after = nn.Sequential(*_layer(WIDTH), nn.Conv2d(WIDTH, 3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        seen = self.between(self.before(x))
        features, presence = seen if isinstance(seen, tuple) else (seen, None)
        return self.after(features), presence


def _layer(inner: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inner, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()


#: Module, and how far the marker is: a squeezed copy sees twice as far as its baseline, the others everything.
SEGMENTING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SqueezeExcite": (lambda: SqueezeExcite(WIDTH, 2), SIZE),
    "CBAM": (lambda: CBAM(WIDTH, 2), SIZE),
    "NonLocal": (lambda: NonLocal(WIDTH), SIZE),
    "DualAttention: positions": (lambda: PositionAttention(WIDTH), SIZE),
    "DualAttention: channels": (ChannelAttention, SIZE),
    "ObjectContext": (lambda: ObjectContext(WIDTH, WIDTH), SIZE),
    "ContextEncoding": (lambda: ContextEncoding(WIDTH, 3, 8), SIZE),
    "SqueezeAttention": (lambda: SqueezeAttention(WIDTH), 4),
}


def segment(between: Callable[[], nn.Module], reach: int, steps: int, seed: int = 0) -> float:
    """The share of blob pixels that a trained network labels rightly, on held-out pictures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pictures, labels = marked_blobs(1024, reach, generator)
    network = Segmenter(between())
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, 4 * (1 - step / steps))
        index = torch.randint(len(pictures), (32,), generator=generator)
        logits, presence = network(pictures[index])
        loss = F.cross_entropy(logits, labels[index])
        if presence is not None:
            loss = loss + 0.2 * presence_loss(presence, labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    pictures, labels = marked_blobs(HELD_OUT, reach, torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        found = network(pictures)[0].argmax(1)
    return 100 * float((found == labels)[labels > 0].double().mean())


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits at 28 x 28 in [0, 1]: training pictures and labels, held-out ones."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = torch.from_numpy(found.images).float()[:, None] / 16
    pictures = F.interpolate(pictures, (28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return pictures[train], labels[train], pictures[test], labels[test]


def distort(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 60 degrees, half to full size, moved, on a canvas of 42 pixels."""
    b = len(pictures)
    angle, size, x, y = torch.rand(4, b, generator=generator)
    angle, size = (2 * angle - 1) * torch.pi / 3, 1 / (0.45 + 0.3 * size)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = size * angle.cos(), -size * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = size * angle.sin(), size * angle.cos()
    theta[:, :, 2] = torch.stack([2 * x - 1, 2 * y - 1], 1) * 0.8
    grid = F.affine_grid(theta, [b, 1, 42, 42], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def read_distorted(transformer: bool, steps: int) -> float:
    """Held-out accuracy on distorted digits of a small network, with a spatial transformer before it or without."""
    torch.manual_seed(0)
    pictures, labels, held, of_held = digits()
    reader = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    if transformer:
        localise = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(32), nn.ReLU(),
        )  # fmt: skip
        network: nn.Module = nn.Sequential(SpatialTransformer(localise, 32, size=(28, 28)), reader)
    else:
        network = reader
    generator = torch.Generator().manual_seed(0)
    network(distort(pictures[:2], generator))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        index = torch.randint(len(pictures), (64,), generator=generator)
        loss = F.cross_entropy(network(distort(pictures[index], generator)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        seen = [network(distort(held, torch.Generator().manual_seed(k))).argmax(1) for k in range(4)]
    return 100 * float(torch.stack([s == of_held for s in seen]).double().mean())


def read_by_glimpses(steps: int) -> tuple[float, float]:
    """Held-out accuracy of RAM on digits, and of the same weights when every glimpse is anywhere."""
    torch.manual_seed(0)
    pictures, labels, held, of_held = digits()
    model = RecurrentAttention(10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, 2 * (1 - step / steps))
        index = torch.randint(len(pictures), (128,))
        loss = recurrent_attention_loss(model(pictures[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = float((model(held).log_probabilities.argmax(1) == of_held).double().mean())
        model.steps = 1
        one = float((model(held).log_probabilities.argmax(1) == of_held).double().mean())
    return 100 * accuracy, 100 * one


#: Pixels of the pictures with small parts, of a mark, and of a patch.
LARGE, MARK, PATCH = 64, 9, 24


def small_parts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Discs (count, 3, 64, 64) with a small striped mark each, upright or lying: class (count,) and middle (count, 2).

    Another mark, off the disc, has stripes of either way and counts for nothing. At a quarter of the size the stripes
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
    """RA-CNN on :func:`small_parts`: accuracy of the window, of the whole picture at a quarter of its size, how often
    the window holds the mark, and how often one of its size in the middle does.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pictures, kinds, _ = small_parts(1024, generator)
    features = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2),
    )  # fmt: skip
    propose, crop = AttentionProposal(16 * 16, 64), RecurrentAttentionCrop(32, steepness=0.5, least=0.15)
    with torch.no_grad():  # half the side, as the paper starts
        list(propose.parameters())[-1][2] = -1.1
    whole, close = _small_network(), _small_network()
    classify = torch.optim.Adam([*whole.parameters(), *close.parameters()], 2e-3)
    look = torch.optim.Adam([*features.parameters(), *propose.parameters()], 1e-3)

    def both(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        window = propose(features(batch))
        return whole(F.avg_pool2d(batch, 4)), close(crop(batch, window)), window

    for step in range(steps):
        index = torch.randint(len(pictures), (64,), generator=generator)
        coarse, fine, _ = both(pictures[index])
        # In turns: the scales learn to classify, then the proposal to make the finer one surer.
        if step % 2 == 0:
            loss, optimizer = (
                F.cross_entropy(coarse, kinds[index]) + F.cross_entropy(fine, kinds[index]),
                classify,
            )
        else:
            loss, optimizer = ranking_loss([coarse.detach(), fine], kinds[index], 0.5), look
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
    """Two-level attention on :func:`small_parts` cut into 25 patches: accuracy with the selected patches and with all,
    and how often a selected patch holds the mark. The filter is trained on whether a patch does.
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
        cut, of = patches(pictures[index]), kinds[index]
        filtered = F.cross_entropy(
            model.filter_net(cut.flatten(0, 1)), shows(middles[index]).long().flatten()
        )
        loss = filtered + F.nll_loss(model(cut).log(), of) + F.nll_loss(all_patches(cut).log(), of)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, kinds, middles = small_parts(HELD_OUT, torch.Generator().manual_seed(1))
    cut = patches(pictures)
    with torch.no_grad():
        right = [100 * float((p.argmax(1) == kinds).double().mean()) for p in (model(cut), all_patches(cut))]
        held = (model.selected(cut) & shows(middles)).any(1)
    return right[0], right[1], 100 * float(held.double().mean())


def rows(only: list[str], steps: float = 1.0) -> list[Row]:
    """Every task whose module begins with one of ``only``, or all; ``steps``: a factor on the training's length."""

    def wanted(name: str) -> bool:
        return not only or name.startswith(tuple(only))

    found = []
    baselines: dict[int, float] = {}
    for name, (between, reach) in SEGMENTING.items():
        if wanted(name):
            if reach not in baselines:
                baselines[reach] = segment(nn.Identity, reach, round(400 * steps))
            ours = segment(between, reach, round(400 * steps))
            found.append(
                Row(name, "blobs whose class a marker tells", "pixels right", ours, baselines[reach])
            )
    if wanted("SpatialTransformer"):
        ours, plain = (read_distorted(with_it, round(1500 * steps)) for with_it in (True, False))
        found.append(Row("SpatialTransformer", "distorted digits", "accuracy", ours, plain))
    if wanted("RecurrentAttention"):
        ours, plain = read_by_glimpses(round(4000 * steps))
        found.append(Row("RecurrentAttention", "digits; one glimpse", "accuracy", ours, plain))
    if wanted("RecurrentAttentionCrop"):
        ours, plain, holds, central = find_the_part(round(1500 * steps))
        found.append(
            Row("RecurrentAttentionCrop", "a small mark decides; whole picture", "accuracy", ours, plain)
        )
        found.append(
            Row("RecurrentAttentionCrop", "window holds it; one in the middle", "share", holds, central)
        )
    if wanted("TwoLevelAttention"):
        ours, plain, holds = choose_patches(round(300 * steps))
        found.append(Row("TwoLevelAttention", "a small mark decides; all patches", "accuracy", ours, plain))
        found.append(Row("TwoLevelAttention", "a selected patch holds the mark", "share", holds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What attention modules learn that their baselines don't.")
    parser.add_argument("--only", nargs="*", default=[], help="modules, or the beginnings of their names")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    print(f"{'module':26} {'task; baseline':38} {'measure':13} {'ours':>6} {'without':>8}")
    for row in rows(arguments.only):
        baseline = "" if row.baseline is None else f"{row.baseline:.1f}"
        print(f"{row.module:26} {row.task:38} {row.measure:13} {row.ours:6.1f} {baseline:>8}", flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
