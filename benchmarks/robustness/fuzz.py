"""Tries readers and operators on random input: ``python -m benchmarks.robustness.fuzz [--tries N] [--only NAME ...]``.

Real files (simulated data sets, checkpoints, configs) are damaged at random, and every reader opens them; operators get
random arguments, good and bad, and are held against their references; those whose answers are indices also get data of
all magnitudes. A right answer passes, and so does an error that names the fault. Another error, a crash of the process,
a hang or a wrong answer is a finding, printed with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from .fuzz_indices import INDICES
from .fuzz_losses import EXTREMES
from .fuzz_operators import OPERATORS as COMPARED
from .fuzz_operators import Wrong
from .fuzz_readers import READERS, Reader, write_seeds

OPERATORS = COMPARED | INDICES | EXTREMES
#: The errors that a reader or an operator may raise, naming file or argument. MissingExtraError is an ImportError.
REFUSALS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
)
#: Seconds after which a try counts as hanging.
PATIENCE = 20.0
TOKENS = (
    b"",
    b"NaN",
    b"-1",
    b"9" * 30,
    b"\0",
    b"\xc3\xa9",
    b"../..",
    b"[]",
    b"{}",
    b'"',
    b",",
    b"\n",
    b"1e999",
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The content with one to four random damages."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + rng.randint(1, 16)] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            data[at : at + 8] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * len(data[at : at + 8])
        elif kind == 5:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        else:
            # Headers lie at the front, and in an MP4 at the end.
            near = rng.randrange(min(len(data), 64) + 1)
            data[near : near + 4] = rng.randbytes(len(data[near : near + 4]))
    return bytes(data)


class Damaged:
    """Tries a reader with one of its files damaged and the others whole."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.folder = reader, folder
        self.whole = {file: file.read_bytes() for file in reader.files(folder)}

    def __call__(self, seed: int) -> None:
        # Restored before a try, not after: the try before may have ended with its process.
        for file, content in self.whole.items():
            file.write_bytes(content)
        rng = random.Random(seed)
        file = rng.choice(list(self.whole))
        file.write_bytes(mutate(self.whole[file], rng))
        self.reader.read(self.folder)


class Worker:
    """A forked process that makes tries one after the other and reports each outcome."""

    def __init__(self, one: Callable[[int], None], first: int, last: int):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            self.buffer = b""
            return
        os.close(self.reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        for seed in range(first, last):
            os.write(writer, f"{seed} began\n".encode())
            torch.manual_seed(seed)
            try:
                one(seed)
                outcome = "right"
            except REFUSALS as error:
                outcome = "refused" if str(error) else f"{type(error).__name__} without a message"
            except Wrong as error:
                outcome = f"wrong: {error}"
            except BaseException as error:  # the finding
                outcome = f"{type(error).__name__}: {error}"
            os.write(writer, f"{seed} {outcome[:300]!r}\n".encode())
        os._exit(0)

    def line(self) -> str | None:
        """The next line, "" after PATIENCE without one, None at the end."""
        until = time.monotonic() + PATIENCE
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return ""
            data = os.read(self.reader, 65536)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()

    def end(self) -> int:
        os.close(self.reader)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def campaign(one: Callable[[int], None], tries: int) -> tuple[Counter[str], list[str]]:
    """The outcomes of so many tries, and the findings."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    seed = 0
    while seed < tries:
        worker = Worker(one, seed, tries)
        while True:
            line = worker.line()
            if not line:
                break
            number, outcome = line.split(" ", 1)
            seed = int(number)
            if outcome == "began":
                continue
            outcome = outcome[1:-1]
            seed += 1
            if outcome in ("right", "refused"):
                counts[outcome] += 1
            else:
                counts["findings"] += 1
                findings.append(f"seed {number}: {outcome}")
        if line == "":
            os.kill(worker.pid, signal.SIGKILL)
        code = worker.end()
        if line == "" or code:
            counts["findings"] += 1
            findings.append(f"seed {seed}: " + ("hangs" if line == "" else f"the process ends with {code}"))
            seed += 1
    return counts, findings


def main() -> None:
    names = [*READERS, *OPERATORS]
    parser = argparse.ArgumentParser(description="Try readers and operators on random input.")
    parser.add_argument("--tries", type=int, default=1000, help="tries of every reader and operator")
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="NAME")
    arguments = parser.parse_args()
    began, total, all_findings = time.monotonic(), Counter[str](), []
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_seeds(folder, [READERS[target] for target in arguments.only if target in READERS])
        # Forked processes must find no threads that were not forked with them.
        torch.set_num_threads(1)
        for target in track(arguments.only, "fuzzing", console=Console(file=sys.stderr)):
            if target in READERS:
                one: Callable[[int], None] = Damaged(READERS[target], folder)
            else:
                one = OPERATORS[target]
            counts, findings = campaign(one, arguments.tries)
            if isinstance(one, Damaged):
                for file, content in one.whole.items():
                    file.write_bytes(content)
            rows.append((target, counts))
            total += counts
            all_findings += [f"{target} {finding}" for finding in findings]
    print(f"{'':24} {'tries':>7} {'right':>7} {'refused':>8} {'findings':>9}")
    for target, counts in [*rows, ("all", total)]:
        numbers = counts["right"], counts["refused"], counts["findings"]
        print(f"{target:24} {sum(numbers):7} {numbers[0]:7} {numbers[1]:8} {numbers[2]:9}")
    print(f"{time.monotonic() - began:.0f} s")
    for line in all_findings[:50]:
        print(line)
    sys.exit(bool(all_findings))


if __name__ == "__main__":
    main()
