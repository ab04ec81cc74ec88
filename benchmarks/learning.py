"""Compares what attention modules and their baselines learn: ``python -m benchmarks.learning [--only ...]``.

Each task is made on the spot so that attention decides it. A module and its baseline are the same network but for the
module, trained the same way. The result is a table, after some minutes on two cores.
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
    ChannelAttention,
    ContextEncoding,
    MultiHeadSelfAttention,
    NonLocal,
    ObjectContext,
    PositionAttention,
    RecurrentAttention,
    SpatialTransformer,
    SqueezeAttention,
    SqueezeExcite,
    presence_loss,
    recurrent_attention_loss,
)

from .small_parts import HELD_OUT, choose_patches, find_the_part

#: Channels of the segmentation networks, and the side of their pictures in pixels.
WIDTH, SIZE = 16, 24


@dataclass(frozen=True)
class Row:
    """A figure in percent with its baseline's."""

    module: str
    task: str
    measure: str
    ours: float
    baseline: float | None = None


def marked_blobs(
    count: int, reach: int, generator: torch.Generator, size: int = SIZE
) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, S, S), S the ``size``, of grey blobs, and labels (count, S, S): 0 background, 1 or 2 blob.

    Nothing near a picture's blob tells its class. A marker of 2 x 2 pixels, red or blue, does, 3 to ``reach`` pixels
    from the edge of the blob. A network that sees less can only guess.
    """
    pictures = 0.1 * torch.randn(count, 3, size, size, generator=generator)
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for i in range(count):
        kind = int(torch.randint(2, (), generator=generator))
        y, x = (int(v) for v in torch.randint(0, size - 6, (2,), generator=generator))
        pictures[i, :, y : y + 6, x : x + 6] += 0.6
        labels[i, y : y + 6, x : x + 6] = 1 + kind
        while True:
            v, u = (int(w) for w in torch.randint(0, size - 2, (2,), generator=generator))
            gap = max(y - v - 2, v - y - 6, x - u - 2, u - x - 6)
            if 3 <= gap <= reach:
                break
        pictures[i, 2 * kind, v : v + 2, u : u + 2] += 2.0
    return pictures, labels


class Segmenter(nn.Module):
    """Three convolutions, the module, and two more; without the module the network sees 9 pixels."""

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


#: Modules, and the marker's distance: a squeezed copy sees twice as far as its baseline, the others everything.
SEGMENTING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SqueezeExcite": (lambda: SqueezeExcite(WIDTH, 2), SIZE),
    "CBAM": (lambda: CBAM(WIDTH, 2), SIZE),
    "NonLocal": (lambda: NonLocal(WIDTH), SIZE),
    "MultiHeadSelfAttention": (lambda: MultiHeadSelfAttention(WIDTH, 2, extent=SIZE), SIZE),
    "DualAttention: positions": (lambda: PositionAttention(WIDTH), SIZE),
    "DualAttention: channels": (ChannelAttention, SIZE),
    "ObjectContext": (lambda: ObjectContext(WIDTH, WIDTH), SIZE),
    "ContextEncoding": (lambda: ContextEncoding(WIDTH, 3, 8), SIZE),
    "SqueezeAttention": (lambda: SqueezeAttention(WIDTH), 4),
}


def segment(
    between: Callable[[], nn.Module], reach: int, steps: int, seed: int = 0, size: int = SIZE
) -> float:
    """The share of blob pixels that a trained network labels rightly, on held-out pictures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pictures, labels = marked_blobs(1024, reach, generator, size)
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
    pictures, labels = marked_blobs(HELD_OUT, reach, torch.Generator().manual_seed(seed + 1), size)
    with torch.no_grad():
        predicted = network(pictures)[0].argmax(1)
    return 100 * float((predicted == labels)[labels > 0].double().mean())


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits at 28 x 28 in [0, 1]: training pictures and labels, held-out ones."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.from_numpy(data.images).float()[:, None] / 16
    pictures = F.interpolate(pictures, (28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return pictures[train], labels[train], pictures[test], labels[test]


def distort(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn digits by up to 60 degrees, scale them to half or more, and move them, on a canvas of 42 pixels."""
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
    """Held-out accuracy of RAM on digits, and of the same weights when every glimpse is at a random place."""
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


def rows(only: list[str], steps: float = 1.0) -> list[Row]:
    """The rows of every task whose module begins with one of ``only``, or all; ``steps``: a factor on the training."""

    def wanted(name: str) -> bool:
        return not only or name.startswith(tuple(only))

    results = []
    baselines: dict[int, float] = {}
    for name, (between, reach) in SEGMENTING.items():
        if wanted(name):
            if reach not in baselines:
                baselines[reach] = segment(nn.Identity, reach, round(400 * steps))
            ours = segment(between, reach, round(400 * steps))
            results.append(
                Row(name, "blobs whose class a marker tells", "pixels right", ours, baselines[reach])
            )
    if wanted("SpatialTransformer"):
        ours, plain = (read_distorted(with_it, round(1500 * steps)) for with_it in (True, False))
        results.append(Row("SpatialTransformer", "distorted digits", "accuracy", ours, plain))
    if wanted("RecurrentAttention"):
        ours, plain = read_by_glimpses(round(4000 * steps))
        results.append(Row("RecurrentAttention", "digits; one glimpse", "accuracy", ours, plain))
    if wanted("RecurrentAttentionCrop"):
        ours, plain, holds, central = find_the_part(round(1500 * steps))
        results.append(
            Row("RecurrentAttentionCrop", "a small mark decides; whole picture", "accuracy", ours, plain)
        )
        results.append(
            Row("RecurrentAttentionCrop", "window holds it; one in the middle", "share", holds, central)
        )
    if wanted("TwoLevelAttention"):
        ours, plain, holds = choose_patches(round(300 * steps))
        results.append(Row("TwoLevelAttention", "a small mark decides; all patches", "accuracy", ours, plain))
        results.append(Row("TwoLevelAttention", "a selected patch holds the mark", "share", holds))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what attention modules and their baselines learn.")
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
