"""Tile sizes, by measurement of registers and shared memory (tests/kernels/test_compile.py), not by autotuning.

A call compiles once per dtype and option set and never benchmarks: the first step of a training run costs what the others
do, and a CUDA graph can be captured from it.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret


class Tile(NamedTuple):
    """A program's tile: ``rows`` x ``cols`` of the similarity matrix, built from chunks of ``depth`` features.

    ``depth >= D`` keeps the rows resident; ``out`` is the number of output features a gradient program owns.
    """

    rows: int
    cols: int
    depth: int
    out: int
    warps: int
    stages: int


# Keyed by (architecture, bytes per element); each entry is (largest D, tile), the last one chunked for any D.
# "sm80" also serves the chips with 99 KB of shared memory (8.6, 8.9, 12.0).
SCAN_TILES: dict[tuple[str, int], list[tuple[int, Tile]]] = {
    ("sm80", 2): [
        (64, Tile(128, 64, 64, 0, 4, 3)),
        (128, Tile(128, 64, 128, 0, 8, 3)),
        (2048, Tile(128, 64, 64, 0, 8, 3)),
    ],
    ("sm90", 2): [
        (64, Tile(128, 128, 64, 0, 8, 3)),
        (128, Tile(128, 128, 128, 0, 8, 3)),
        (256, Tile(128, 64, 256, 0, 8, 3)),
        (2048, Tile(128, 128, 64, 0, 8, 3)),
    ],
    ("sm80", 4): [(2048, Tile(64, 64, 32, 0, 8, 2))],
    ("sm90", 4): [(2048, Tile(64, 64, 32, 0, 8, 2))],
}
GRADIENT_TILES: dict[tuple[str, int], list[tuple[int, Tile]]] = {
    ("sm80", 2): [
        (64, Tile(64, 64, 64, 64, 4, 3)),
        (128, Tile(64, 64, 128, 128, 4, 2)),
        (2048, Tile(64, 64, 64, 128, 8, 2)),
    ],
    ("sm90", 2): [
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 3)),
        (256, Tile(128, 64, 256, 256, 8, 2)),
        (2048, Tile(128, 64, 64, 256, 8, 3)),
    ],
    ("sm80", 4): [(2048, Tile(32, 32, 32, 64, 4, 2))],
    ("sm90", 4): [(2048, Tile(32, 32, 32, 64, 4, 2))],
}
for _size in (2, 4):
    SCAN_TILES["sm100", _size] = SCAN_TILES["sm90", _size]
    GRADIENT_TILES["sm100", _size] = GRADIENT_TILES["sm90", _size]
    # The interpreter pays per operation, not per element.
    SCAN_TILES["interpreter", _size] = [(64, Tile(64, 64, 64, 0, 4, 1)), (2048, Tile(64, 64, 128, 0, 4, 1))]
    GRADIENT_TILES["interpreter", _size] = [(64, Tile(64, 64, 64, 64, 4, 1)), (2048, Tile(64, 64, 128, 128, 4, 1))]


def choose_tile(table: dict[tuple[str, int], list[tuple[int, Tile]]], arch: str, itemsize: int, width: int) -> Tile:
    """The first tile of the table that is made for rows of ``width`` features."""
    tile = next(tile for largest, tile in table[arch, itemsize] if width <= largest or largest == 2048)
    if tile.depth >= width:
        # Narrow rows: no wider than the next power of two, and at least what a matrix instruction takes.
        depth = max(16, triton.next_power_of_2(width))
        tile = tile._replace(depth=depth, out=depth if tile.out else 0)
    return tile


@lru_cache
def architecture(device: torch.device) -> str:
    """The row of the tile tables for a device."""
    if INTERPRETED:
        return "interpreter"
    capability = torch.cuda.get_device_capability(device)
    return {(9, 0): "sm90", (10, 0): "sm100", (10, 3): "sm100"}.get(capability, "sm80")


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; under the interpreter a few, so that splits are exercised."""
    if INTERPRETED:
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def column_splits(device: torch.device, programs: int, tiles: int) -> int:
    """How many programs share the columns of a row block, so that small problems fill the chip."""
    return max(1, min(2 * multiprocessors(device) // max(programs, 1), tiles, 32))


def dot_precision(x: Tensor) -> str:
    """Precision of float32 products: full IEEE unless PyTorch's own matmul may use TF32."""
    if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def upcast(x: Tensor) -> bool:
    """Whether tiles go to float32 on load: Triton's interpreter has no bfloat16 arithmetic."""
    return INTERPRETED and x.dtype == torch.bfloat16
