"""Sizes of grids and tiles, on the host: Triton's own functions of these names take 5 us of Python a call."""


def ceil_div(length: int, block: int) -> int:
    """Blocks that cover ``length``."""
    return -(-length // block)


def next_power_of_2(length: int) -> int:
    """The smallest power of two that is not below ``length``, 1 for nothing."""
    return 1 << max(length - 1, 0).bit_length()
