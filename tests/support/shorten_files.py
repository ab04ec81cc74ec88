"""SPHERE files compressed by shorten, as the LDC distributes WSJ0: written bit by bit, since nothing installed does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
_TYPE_S16LH = 5
_DIFF1, _QUIT, _BLOCKSIZE = 1, 4, 5


def _rice(value: int, low: int) -> str:
    """An unsigned number: its high bits in unary, then the ``low`` lowest."""
    return "0" * (value >> low) + "1" + (format(value & ((1 << low) - 1), f"0{low}b") if low else "")


def _ulong(value: int) -> str:
    low = max(0, value.bit_length() - 1)
    return _rice(low, 2) + _rice(value, low)


def _signed(value: int, low: int) -> str:
    return _rice(2 * value if value >= 0 else 2 * ~value + 1, low + 1)


def write_shortened(path: Path, samples: NDArray[np.int16], rate: int) -> None:
    """Write one channel as SPHERE with ``pcm,embedded-shorten-v2.00``: blocks of first differences."""
    bits = "".join(_ulong(value) for value in (_TYPE_S16LH, 1, _BLOCK, 0, 0, 0))
    before = 0
    for start in range(0, len(samples), _BLOCK):
        block = [int(sample) for sample in samples[start : start + _BLOCK]]
        if len(block) < _BLOCK:
            bits += _rice(_BLOCKSIZE, 2) + _ulong(len(block))
        differences = np.diff([before, *block])
        before = block[-1]
        low = int(np.log2(np.abs(differences).mean() + 1))
        bits += _rice(_DIFF1, 2) + _rice(low, 3) + "".join(_signed(int(d), low) for d in differences)
    bits += _rice(_QUIT, 2)
    bits += "0" * (-len(bits) % 32)
    body = b"ajkg\x02" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = "\n".join(
        [
            "NIST_1A",
            "   1024",
            "channel_count -i 1",
            f"sample_count -i {len(samples)}",
            f"sample_rate -i {rate}",
            "sample_n_bytes -i 2",
            "sample_byte_format -s2 01",
            "sample_sig_bits -i 16",
            "sample_coding -s26 pcm,embedded-shorten-v2.00",
            "end_head\n",
        ]
    )
    path.write_bytes(header.encode().ljust(1024) + body)
