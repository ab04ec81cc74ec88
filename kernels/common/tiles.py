"""Tile sizes, chosen by measured registers and shared memory (tests/kernels/test_compile.py), and column splits.

Nothing is autotuned: a call compiles once per dtype and option set and never benchmarks. It does the same in every
process, and a CUDA graph can be captured as soon as it has run once.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cmx_fast.kernels.common.grids import next_power_of_2

INTERPRETED = triton.knobs.runtime.interpret


# Note [Column splits]
# ~~~~~~~~~~~~~~~~~~~~
# A matrix kernel has a program per block of rows. Where these do not fill the chip, each row block's column tiles are
# divided among up to 32 programs, enough for two per multiprocessor. Program `split` walks tiles [split * n // splits,
# (split + 1) * n // splits) and writes slot `split`, which is no other program's; a later kernel adds the slots, always
# in the same order. No atomics: the same inputs give the same bits on one chip. A slot costs 3 or 4 floats per row
# (statistics) or D (gradients), so memory stays within 32 times O(N) or O(N D).


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


MAX_WIDTH = 2048

# Keyed by architecture and dtype; each entry is (largest D, tile), the last one chunked for any D.
# "sm80" also serves the chips with 99 KB of shared memory: 8.6 and 8.9 all of it, 12.0 what "sm120" has no entry for.
TileTable = dict[tuple[str, torch.dtype], list[tuple[int, Tile]]]

SCAN_TILES: TileTable = {
    ("sm80", torch.bfloat16): [
        (64, Tile(128, 64, 64, 0, 8, 3)),
        (128, Tile(128, 64, 128, 0, 8, 2)),
        (MAX_WIDTH, Tile(128, 64, 64, 0, 8, 3)),
    ],
    ("sm90", torch.bfloat16): [
        (64, Tile(128, 64, 64, 0, 8, 3)),
        (128, Tile(128, 64, 128, 0, 8, 3)),
        (256, Tile(128, 64, 256, 0, 8, 2)),
        (MAX_WIDTH, Tile(128, 64, 64, 0, 8, 4)),
    ],
    ("sm80", torch.float32): [(MAX_WIDTH, Tile(64, 64, 32, 0, 8, 2))],
    ("sm120", torch.float32): [(MAX_WIDTH, Tile(64, 64, 16, 0, 8, 3))],  # sm_80's spills a few registers here
}
GRADIENT_TILES: TileTable = {
    ("sm80", torch.bfloat16): [
        (64, Tile(64, 32, 64, 64, 4, 2)),
        (128, Tile(64, 64, 128, 128, 8, 2)),
        (MAX_WIDTH, Tile(64, 64, 64, 128, 8, 2)),
    ],
    ("sm90", torch.bfloat16): [
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 3)),
        (256, Tile(128, 32, 256, 256, 8, 2)),
        (MAX_WIDTH, Tile(128, 32, 64, 128, 8, 3)),
    ],
    # float16 multiplies its gradient in TF32, which takes more registers.
    ("sm90", torch.float16): [
        (64, Tile(128, 64, 64, 64, 8, 3)),
        (128, Tile(128, 32, 128, 128, 8, 3)),
        (MAX_WIDTH, Tile(128, 32, 64, 128, 8, 3)),
    ],
    # The accumulators live in tensor memory: 512 columns for all of a program's products.
    ("sm100", torch.bfloat16): [
        (64, Tile(128, 32, 64, 64, 8, 3)),
        (128, Tile(128, 64, 128, 128, 8, 2)),
        (256, Tile(64, 64, 256, 256, 8, 2)),
        (MAX_WIDTH, Tile(128, 64, 32, 128, 8, 3)),
    ],
    # sm_80's last tile with two stages spills here: the assembler counts differently on this chip.
    ("sm120", torch.bfloat16): [
        (64, Tile(64, 32, 64, 64, 4, 3)),
        (128, Tile(64, 64, 128, 128, 8, 2)),
        (MAX_WIDTH, Tile(64, 64, 64, 128, 8, 3)),
    ],
    ("sm80", torch.float32): [(MAX_WIDTH, Tile(32, 32, 16, 128, 4, 2))],
}

# The gradient of the logits itself: a product as any, with two exponentials behind it.
LOGIT_TILES: TileTable = {
    ("sm80", torch.bfloat16): [(MAX_WIDTH, Tile(128, 64, 64, 0, 8, 3))],
    ("sm90", torch.bfloat16): [(MAX_WIDTH, Tile(128, 128, 64, 0, 8, 4))],
    ("sm80", torch.float32): [(MAX_WIDTH, Tile(32, 64, 16, 0, 4, 2))],
}


def choose_tile(table: TileTable, arch: str, dtype: torch.dtype, width: int) -> Tile:
    """The table's tile for rows of ``width`` features of this dtype."""
    if INTERPRETED:
        # The interpreter pays per operation, not per element.
        tile = Tile(64, 64, 64 if width <= 64 else 128, 64 if width <= 64 else 128, 4, 1)
    else:
        while (arch, dtype) not in table:
            # Halves share the entries of bfloat16, and newer chips those of older ones.
            if dtype == torch.float16:
                dtype = torch.bfloat16
            else:
                arch = {"sm120": "sm80", "sm100": "sm90", "sm90": "sm80"}[arch]
        tile = next(tile for largest, tile in table[arch, dtype] if width <= largest or largest == MAX_WIDTH)
    # Narrow rows: no wider than the next power of two, and at least what a matrix instruction takes.
    padded = max(16, next_power_of_2(width))
    return tile._replace(depth=min(tile.depth, padded), out=min(tile.out, padded))


@lru_cache
def architecture(device: torch.device) -> str:
    """The row of the tile tables for a device."""
    if INTERPRETED:
        return "sm80"
    capability = torch.cuda.get_device_capability(device)
    known = {(9, 0): "sm90", (10, 0): "sm100", (10, 3): "sm100", (12, 0): "sm120", (12, 1): "sm120"}
    return known.get(capability, "sm80")


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; under the interpreter a few, so that splits are exercised."""
    if INTERPRETED:
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def column_splits(device: torch.device, programs: int, tiles: int) -> int:
    """Number of programs that share the columns of a row block: Note [Column splits].

    Args:
        programs: of one split; tiles: of columns.
    """
    return max(1, min(2 * multiprocessors(device) // max(programs, 1), tiles, 32))


def dot_precision(x: Tensor) -> str:
    """Precision of float32 products: full IEEE unless PyTorch's own matmul may use TF32."""
    if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def upcast(x: Tensor) -> bool:
    """True if tiles are converted to float32 on load: Triton's interpreter has no bfloat16 arithmetic."""
    return INTERPRETED and x.dtype == torch.bfloat16
