"""Finds addresses that 32 bits may be too few for, in the compiler's own form of a kernel (Triton's TTIR).

An offset that is a product of two numbers known only at run time (a row by a width, a batch by a size) can pass 2^31
where tensors are large. Sums of indices, and products with constants or with places within a tile, can't: a dimension
fits 32 bits with room to spare.
"""

from __future__ import annotations

import re

#: name = operation operands : types
ASSIGNMENT = re.compile(r"\s*(%[\w#]+)(?::\d+)? = ([\w.]+) ([^:]*):\s*(.*)")
NAMES = re.compile(r"%[\w#]+")
#: Operations whose result is as large as their operands, give or take a dimension.
PASS_ON = {
    "arith.addi", "arith.subi", "arith.select", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans",
}  # fmt: skip


def narrow_offsets(ttir: str) -> list[str]:
    """The 32-bit products that reach an address, as the compiler writes them."""
    made: dict[str, tuple[str, list[str], str, str]] = {}
    narrow: set[str] = set()
    for line in ttir.splitlines():
        actual = ASSIGNMENT.match(line)
        if not actual:
            continue
        name, operation, operands, types = actual.groups()
        made[name] = operation, NAMES.findall(operands), types, line.strip()
        if operation == "tt.addptr" and re.search(r"(, |x)i32>?", types):
            # At once: a later region may use a name again.
            narrow.update(_products(made[name][1][1], made))
    return sorted(narrow)


def _products(name: str, made: dict[str, tuple[str, list[str], str, str]]) -> list[str]:
    """Products of run-time numbers among what a value is made of."""
    if name not in made:
        return []
    operation, operands, _, line = made[name]
    if operation == "arith.muli":
        return [] if any(_small(operand, made) for operand in operands) else [line]
    return [p for o in operands for p in _products(o, made)] if operation in PASS_ON else []


def _small(name: str, made: dict[str, tuple[str, list[str], str, str]]) -> bool:
    """True if the kernel itself bounds a value: constants, and places within a tile."""
    if name not in made:
        return False
    operation, operands, *_ = made[name]
    return operation in ("arith.constant", "tt.make_range") or (
        operation in PASS_ON and all(_small(operand, made) for operand in operands)
    )
