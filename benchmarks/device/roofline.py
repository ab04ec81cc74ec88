"""Counts what the GPU kernels compute and move, and how long a chip needs: ``python -m benchmarks.device.roofline``.

Nothing is measured here. The products of the matrix kernels are counted in tests/benchmarks/test_roofline.py, under
Triton's interpreter; bytes are those that have to pass through memory at least once per kernel that needs them; the
chips' rates are their makers' for dense products, times what large products and copies reached on an H200.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cmx_fast.kernels.common import library
from cmx_fast.ops.info_nce import WIDEST_MEANS

from ..cases.band_spectrogram import SHAPES
from ..cases.prepare_frames import PROVIDERS as FRAME_PROVIDERS
from ..cases.prepare_frames import view_of
from ..harness.case import Case
from ..harness.registry import DEVICE_CASES

#: Shares of the data sheet's rates that a large bfloat16 product and a large copy reached on an H200 (790 of 989
#: TFLOP/s, 4.3 of 4.8 TB/s); assumed for the others.
PRODUCT_SHARE, COPY_SHARE = 0.80, 0.90
#: Seconds that a launch costs an idle chip; our assumption.
LAUNCH = 4e-6
#: Features that a gradient program holds on the newer chips, by the bytes of one.
WIDEST_FUSED = {2: 256, 4: 128}
#: Iterations of the sparse codes that are measured.
STEPS = 10


@dataclass(frozen=True)
class Chip:
    """A chip's rates: operations per second of dense products, in bfloat16 and in plain float32, and bytes per second.

    The shares are the parts of them that are reached.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    product_share: float = PRODUCT_SHARE
    copy_share: float = COPY_SHARE


CHIPS = (
    Chip("A100", 312e12, 19.5e12, 2.04e12),
    Chip("H100", 989e12, 67e12, 3.35e12),
    Chip("H200", 989e12, 67e12, 4.8e12),
    Chip("B200", 2250e12, 75e12, 8.0e12),
)


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of products, bytes moved, Triton launches: forward and, for losses, backward."""

    products: float
    bytes: float
    launches: int

    def seconds(self, chip: Chip, dtype: torch.dtype = torch.bfloat16) -> float:
        """The longer of computing and moving, plus the launches, in seconds."""
        rate = chip.float32 if dtype == torch.float32 else chip.bfloat16
        busy = max(self.products / (chip.product_share * rate), self.bytes / (chip.copy_share * chip.memory))
        return busy + self.launches * LAUNCH

    def bound(self, chip: Chip, dtype: torch.dtype = torch.bfloat16) -> str:
        """The part of the machine that the time is spent on."""
        rate = chip.float32 if dtype == torch.float32 else chip.bfloat16
        times = {
            "products": self.products / (chip.product_share * rate),
            "memory": self.bytes / (chip.copy_share * chip.memory),
            "launches": self.launches * LAUNCH,
        }
        return max(times, key=lambda name: times[name])


def info_nce(n: int, m: int, d: int, element: int, *, symmetric: bool = True, bank: int = 0) -> Cost:
    """Forward a product for the rows' softmax and one for the columns'; backward each again and one for a gradient.

    Wide rows: backward one product again, whose result is written a chunk at a time, and one for each gradient. A bank
    beside a batch takes a product forward; backward the same and one for the queries.
    """
    directions = 2 if symmetric else 1
    pairs = 2.0 * n * m * d
    rows = (n + m) * d * element
    # Every pass reads both sides (from the cache where they fit); gradients are added up in float32.
    moved = (directions + 3) * rows + 2 * (n + m) * d * 4 + 2 * bank * d * element
    if d <= WIDEST_FUSED[element] or n * m * d < library.FEWEST_MULTIPLICATIONS:
        return Cost((directions + 4) * pairs + 3 * 2.0 * n * bank * d, moved, 4 if symmetric else 5)
    chunks = math.ceil(n * m * element / library.CHUNK_BYTES)
    products = (directions + 3) * pairs + 3 * 2.0 * n * bank * d
    return Cost(products, moved + 3 * n * m * element, 3 + 3 * chunks)


def bank(n: int, k: int, d: int, element: int) -> Cost:
    """Forward a product for the softmax and one for the mean rows, in one read of the bank; backward none.

    Wider rows than the mean rows are made for: the first product again backward, as with a batch.
    """
    rows, pairs = 4 * n * d * element, 2.0 * n * k * d
    if d > WIDEST_MEANS:
        return Cost(3 * pairs, 2 * k * d * element + rows, 4)
    return Cost(2 * pairs, k * d * element + rows, 3)


def supcon(n: int, d: int, element: int) -> Cost:
    """A product forward; backward the same and one for the gradient: rows and columns are one.

    Features are read by the scan and by the gradient kernel, whose result is added up in float32 and written.
    """
    return Cost(3 * 2.0 * n * n * d, 3 * n * d * element + 2 * n * d * 4, 4)


def sigmoid_contrastive(n: int, m: int, d: int, element: int) -> Cost:
    """Forward a product for the losses and one for the queries' gradient; backward the same for the keys'."""
    return Cost(4 * 2.0 * n * m * d, 2 * (n + m) * d * element + 2 * (n + m) * d * 4, 4)


def kmeans_step(n: int, d: int, k: int, element: int) -> Cost:
    """A product to assign, and for few clusters one to sum; points are read once, for many clusters once more."""
    few = k <= 128
    return Cost(
        (2 if few else 1) * 2.0 * n * k * d, (1 if few else 2) * n * d * element + 8 * n, 2 if few else 4
    )


def cluster_cross_entropy(n: int, d: int, k: int, element: int) -> Cost:
    """A product forward, two backward."""
    return Cost(3 * 2.0 * n * k * d, 2 * n * d * element + n * d * element, 4)


def attention(batch: int, n: int, m: int, d: int, e: int, element: int) -> Cost:
    """Forward scores and values; backward scores four times, what the values pull three times, and three gradients.

    That is for heads as wide as one program holds; wider gradients are made in parts, each with its own scores.
    """
    pairs = 2.0 * batch * n * m
    rows = batch * (n * d + m * d + (n + m) * e) * element
    return Cost(pairs * ((d + e) + (6 * d + 4 * e)), 5 * rows, 3)


def dense_scores(n: int, places: int, tokens: int, d: int, element: int) -> Cost:
    """Forward all similarities; backward as many multiplications of choices with the keys, and rows gathered."""
    products = 2.0 * n * n * places * tokens * d
    rows, chosen = n * (places + tokens) * d * element, n * n * tokens
    return Cost(2 * products, float(3 * rows + 3 * chosen), 3)


def sparse_code(n: int, c: int, atoms: int, steps: int) -> Cost:
    """Two products a step, of which the dictionary's stays on the chip; backward twice that; in float32."""
    forward = 2.0 * n * c * atoms * (2 * steps - 2)
    return Cost(3 * forward, 4 * n * (c + atoms) * 4, 2)


def pyramid_correlation(features: int, element: int) -> Cost:
    """Forward features are read once; backward once more, and their gradient written."""
    return Cost(0.0, 3 * features * element, 4)


def gate(features: int, element: int) -> Cost:
    """A pooling read; the product with the residual; backward the gradient, features and output read, two written."""
    return Cost(0.0, (1 + 3 + 5) * features * element, 6)


def prepare_frames(frames: int, views: int, element: int) -> Cost:
    """Bytes of the frames are read once, those of their windows at least; views are written once."""
    return Cost(0.0, frames + views * element, 1)


def band_spectrogram(batch: int, frames: int, n_fft: int, bands: int, samples: int) -> Cost:
    """Frames and their spectra are written and read; five operations per point and level for the transform."""
    transform = 2.5 * n_fft * math.log2(n_fft)
    moved = 4 * (samples + frames * (2 * n_fft + 2 * (n_fft + 2) + bands))
    return Cost(batch * frames * transform, float(batch * moved), 2)


def cost(case: Case) -> Cost | None:
    """The cost of a case of the GPU suite; None where its time is not that of a kernel of ours."""
    element = case.dtype.itemsize
    n, d = case.n, case.d
    maps = n * d * math.prod(case.size)
    if case.task == "clip":
        return info_nce(n, n, d, element)
    if case.task == "two views":
        return supcon(2 * n, d, element)
    if case.task == "bank":
        return bank(n, case.bank, d, element)
    if case.task == "sigmoids":
        return sigmoid_contrastive(n, n, d, element)
    if case.task == "supcon":
        return supcon(n, d, element)
    if case.task in ("step", "step of maps", "maps"):
        return kmeans_step(case.rows, d, case.clusters, element)
    if case.task == "pixels":
        return cluster_cross_entropy(n, d, case.clusters, element)
    if case.task == "codes":
        return sparse_code(n, d, case.clusters, STEPS)
    if case.task in ("correlation", "consistency"):
        return pyramid_correlation(maps, element)
    if case.task == "squeeze-excite":
        return gate(maps, element)
    if case.task in FRAME_PROVIDERS:
        return prepare_frames(maps, n * d * case.size[0] * view_of(case.size) ** 2, element)
    if case.task == "dense contrast":
        places, tokens = case.tokens
        return dense_scores(n, places, tokens, d, element)
    if case.task == "attention":
        return attention(case.batch, n, n, d, case.value, element)
    if case.task in SHAPES:
        n_fft, hop, bands = SHAPES[case.task]
        return band_spectrogram(n, case.size[0] // hop, n_fft, bands, case.size[0])
    return None


def beside(case: Case, device: str, here: Chip | None = None, ms: float | None = None) -> str:
    """A line to stand beside a measurement: the least time on this device, if it is one of CHIPS.

    Args:
        here: the machine by its own rates; with it the line has the least time at those, too.
        ms: the measured time, with which the line has the share of it that the least time is.
    """
    costs = cost(case)
    chip = next((chip for chip in CHIPS if chip.name in device), None)
    if costs is None or (chip is None and here is None):
        return "no limit is known"
    parts = []
    if chip is not None:
        least, bound = 1e3 * costs.seconds(chip, case.dtype), costs.bound(chip, case.dtype)
        parts.append(f"limit of {chip.name}: {least:.3g} ms ({bound}; {costs.products:.3g} operations, ")
        parts[0] += f"{costs.bytes:.3g} bytes)"
    if here is not None:
        least = 1e3 * costs.seconds(here, case.dtype)
        share = f", {least / ms:.0%} of the time measured" if ms else ""
        parts.append(f"at the rates of this run: {least:.3g} ms{share}")
    return "; ".join(parts)


def main() -> None:
    """Print the GPU suite's cases at every chip's limits, in milliseconds, and what bounds an H200."""
    from rich.console import Console  # which a GPU's machine may lack
    from rich.table import Table

    table = Table("case", *(chip.name for chip in CHIPS), "bound by", title="Least milliseconds of a step")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for case in DEVICE_CASES:
        costs = cost(case)
        if costs is not None:
            times = (f"{1e3 * costs.seconds(chip, case.dtype):.3g}" for chip in CHIPS)
            h200 = next(chip for chip in CHIPS if chip.name == "H200")
            table.add_row(case.title, *times, costs.bound(h200, case.dtype))
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
