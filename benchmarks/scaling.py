"""Computes the weak scaling of the ring: ``python -m benchmarks.scaling [--rows N] [--width D]``.

The table has the operations and bytes of a process of ``distributed.info_nce`` (symmetric, in-batch) in a step, forward
and backward, and their time at the assumed rates. Nothing is measured; tests/distributed counts real messages' bytes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """The assumed rates of a process; the defaults are an H200's with one 400 Gb/s link per GPU.

    flops: per second, of the losses' kernels. inside: bytes per second between GPUs of one machine. between: bytes per
    second and GPU between machines. machine: GPUs of one.
    """

    flops: float = 400e12
    inside: float = 300e9
    between: float = 40e9
    machine: int = 8


@dataclass(frozen=True)
class Step:
    """The work of a process in a step: floating-point operations, bytes sent, messages, and bytes of others' rows."""

    flops: float
    sent: float
    messages: int
    held: float

    def seconds(self, rates: Rates, processes: int) -> tuple[float, float]:
        """The seconds of computing, and of sending at the slowest link of the ring; they overlap."""
        link = rates.inside if processes <= rates.machine else rates.between
        return self.flops / rates.flops, self.sent / link


def ring_step(processes: int, rows: int, width: int, element: int = 2) -> Step:
    """The step of symmetric in-batch InfoNCE with ``rows`` queries and keys of ``width`` features in each process.

    Forward a product of the queries with all keys and of the keys with all queries; backward the same products again
    and one more each for the gradients. Queries and keys go round once forward, and once backward with three float32
    numbers a row (log-sum-exp, weight, share).
    """
    products = 2 + 4
    side = rows * width * element
    others = processes - 1
    sent = others * (2 * side + 2 * side + 2 * rows * 3 * 4)
    return Step(
        flops=products * 2.0 * rows * rows * processes * width,
        sent=sent,
        messages=others * (2 + 4),
        held=min(others, 2) * (2 * side + 2 * rows * 3 * 4),
    )


def gathered_bytes(processes: int, rows: int, width: int, element: int = 2) -> float:
    """The bytes of others' rows that "gather" holds at its peak."""
    return (processes - 1) * rows * (2 * width * element + 2 * 3 * 4)


def table(rows: int, width: int, rates: Rates, most: int = 1024) -> list[str]:
    """The lines of the table, for 8 processes and twice as many again, up to ``most``."""
    lines = [
        f"distributed.info_nce, ring, {rows:,} rows of {width} bf16 features in every process, forward and backward",
        f"assumed: {rates.flops / 1e12:.0f} TFLOP/s; {rates.inside / 1e9:.0f} GB/s in a machine of {rates.machine}, "
        f"{rates.between / 1e9:.0f} GB/s a GPU between machines; sending overlaps computing",
        "",
        f"{'GPUs':>5} {'batch':>11} {'TFLOP':>8} {'sent GB':>8} {'compute ms':>11} {'send ms':>8} {'step ms':>8} "
        f"{'a row us':>9} {'ring MB':>8} {'gather MB':>10}",
    ]
    processes = 8
    while processes <= most:
        step = ring_step(processes, rows, width)
        computing, sending = step.seconds(rates, processes)
        total = max(computing, sending)
        lines.append(
            f"{processes:5} {processes * rows:11,} {step.flops / 1e12:8.1f} {step.sent / 1e9:8.2f} "
            f"{1e3 * computing:11.1f} {1e3 * sending:8.1f} {1e3 * total:8.1f} "
            f"{1e6 * total / (processes * rows):9.3f} {step.held / 1e6:8.0f} "
            f"{gathered_bytes(processes, rows, width) / 1e6:10,.0f}"
        )
        processes *= 2
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Weak scaling of the ring, computed from rates.")
    parser.add_argument("--rows", type=int, default=32768, help="queries, and keys, of a process")
    parser.add_argument("--width", type=int, default=512, help="features")
    parser.add_argument("--tflops", type=float, default=Rates.flops / 1e12, help="reached by the kernels")
    parser.add_argument(
        "--between", type=float, default=Rates.between / 1e9, help="GB/s a GPU between machines"
    )
    arguments = parser.parse_args()
    rates = Rates(flops=1e12 * arguments.tflops, between=1e9 * arguments.between)
    print("\n".join(table(arguments.rows, arguments.width, rates)))


if __name__ == "__main__":
    main()
