"""Breaks training runs at random and checks what survives: ``python -m benchmarks.robustness.faults [--faults 500]``.

Runs of two short stages, through the same loop and run folder as every ``cmx train``, are killed at a random moment,
told to stop, killed at a random byte of what they write, left without disk space; their checkpoints, finished weights
and metrics are cut, flipped and deleted. After every fault the run is resumed. It counts the checkpoints lost (a
resumed run that starts before the newest undamaged one) and the differences between the run's end and an undisturbed
one's: weights to the bit, every logged number.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from cmx_fast.networks.weights import load
from cmx_fast.train.loop import Interrupted, Stage, run_stage
from cmx_fast.train.run_folder import RunFolder

STAGES, STEPS, CHECKPOINT_EVERY = ("first", "second"), 120, 20
CONFIG = {"command": "faults", "steps": STEPS}
#: Seconds within which a run that was told to stop must end.
PATIENCE = 30.0


class Model(nn.Module):
    """A small model with all kinds of state: batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 8))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"out": self.layers(batch["x"])}

    def losses(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "loss": (outputs["out"] - batch["space"]).square().mean(),
            "size": outputs["out"].abs().mean(),
        }


def train(folder: Path, started: Callable[[str, int], None]) -> None:
    """Train, or go on; ``started`` hears which stage begins at which step."""
    run = RunFolder(folder, CONFIG, resume=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    for name in STAGES:
        torch.manual_seed(0)
        module = Model()

        def batches(start: int, name: str = name) -> Iterator[dict[str, Tensor]]:
            started(name, start)
            generator = torch.Generator().manual_seed(len(name))
            for step in range(STEPS):
                x = torch.randn(16, 8, generator=generator)
                if step >= start:
                    # Augmentation draws from the global generator.
                    yield {"x": x + 0.1 * torch.randn(16, 8), "space": x.roll(1, 1)}

        groups = [{"params": list(module.parameters()), "lr": 0.01}]
        run_stage(
            fabric,
            run,
            Stage(name, module, groups, STEPS, batches, seed=1),
            checkpoint_every=CHECKPOINT_EVERY,
        )


class Child:
    """A forked process that trains, with the report of its starts and its exit."""

    def __init__(self, folder: Path, log: Path, limit: int | None = None, die_at_limit: bool = False):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            code = 1
            try:
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(handle, 2)
                if limit is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if die_at_limit else signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

                def started(name: str, step: int) -> None:
                    os.write(writer, f"{name} {step}\n".encode())

                train(folder, started)
                code = 0
            except Interrupted:
                code = 130
            except BaseException as error:  # the parent reads any error in the log
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        os.close(writer)

    def wait(self) -> tuple[int, list[tuple[str, int]]]:
        """The exit code, negative for a signal, and the (stage, step) where stages began."""
        _, status = os.waitpid(self.pid, 0)
        with os.fdopen(self.reader) as pipe:
            starts = [line.split() for line in pipe.read().splitlines()]
        return os.waitstatus_to_exitcode(status), [(name, int(step)) for name, step in starts]


def newest(folder: Path) -> dict[str, int]:
    """The step of every stage's newest readable checkpoint, and STEPS where the stage is finished."""
    steps = {}
    for name in STAGES:
        files = [folder / f"{name}.pt", *sorted((folder / "checkpoints" / name).glob("*.pt"), reverse=True)]
        for file in files:
            try:
                state = load(file)
            except (ValueError, FileNotFoundError):
                continue
            steps[name] = STEPS if file.parent == folder else state["step"]
            break
    return steps


def result(folder: Path) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Finished weights and metrics, without the clock."""
    rows = load(folder / f"{STAGES[-1]}.pt")["rows"]
    written = RunFolder(folder, CONFIG, resume=True)
    assert [*written.rows()] == rows, "metrics.jsonl is not what the weights' file says"
    written.close()
    weights = [value for name in STAGES for value in load(folder / f"{name}.pt")["module"].values()]
    return weights, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _files(folder: Path, kind: str) -> list[Path]:
    if kind == "metrics":
        return [file for file in [folder / "metrics.jsonl"] if file.exists()]
    if kind == "weights":
        return [file for name in STAGES if (file := folder / f"{name}.pt").exists()]
    return sorted(folder.glob("checkpoints/*/*.pt"), key=lambda file: (file.parent.name, file.name))[-1:]


def damage(folder: Path, kind: str, fault: str, rng: random.Random) -> bool:
    """Cut, flip a bit of, overwrite or delete one of the run's files; False where there is none of that kind."""
    files = _files(folder, kind)
    if not files:
        return False
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    if fault == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif fault == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif fault == "overwrite":
        begin = rng.randrange(len(content) + 1)
        content[begin : begin + 512] = rng.randbytes(len(content[begin : begin + 512]))
    if fault == "delete":
        file.unlink()
    else:
        file.write_bytes(content)
    return True


PROCESS_FAULTS = ("killed", "told to stop", "killed at a byte", "no space left")
FILE_FAULTS = [
    (kind, fault)
    for kind in ("checkpoint", "weights", "metrics")
    for fault in ("cut", "flip", "overwrite", "delete")
]


class Campaign:
    """Faults of random kinds, and their consequences."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.log = folder / "stderr.txt"
        self.faults: Counter[str] = Counter()
        self.lost: list[str] = []
        self.different: list[str] = []
        began = time.monotonic()
        code, _ = Child(folder / "undisturbed", self.log).wait()
        if code:
            raise RuntimeError(f"the undisturbed run failed; see {self.log}")
        self.seconds = time.monotonic() - began
        self.truth = result(folder / "undisturbed")
        self.largest = max(file.stat().st_size for file in (folder / "undisturbed").glob("*.pt"))

    def one_run(self, index: int, faults: int) -> None:
        """Make a run with so many faults, then let it finish."""
        run = self.folder / f"run{index}"
        for _ in range(faults):
            self.fault(run)
        code, starts = self.resume(run)
        title = f"run {index}: {', '.join(f'{name} from {step}' for name, step in starts)}"
        if code:
            self.different.append(f"{title}: ended with {code}")
        else:
            weights, rows = result(run)
            same = all(a.equal(b) for a, b in zip(weights, self.truth[0], strict=True))
            if not same or rows != self.truth[1]:
                self.different.append(title)
        shutil.rmtree(run)

    def fault(self, run: Path) -> None:
        rng = self.rng
        if rng.random() < 0.4:
            kind, fault = rng.choice(FILE_FAULTS)
            if damage(run, kind, fault, rng):
                self.faults[f"{kind}: {fault}"] += 1
                return
        fault = rng.choice(PROCESS_FAULTS)
        before = newest(run)
        if fault in ("killed", "told to stop"):
            child = Child(run, self.log)
            time.sleep(rng.random() * self.seconds)
            os.kill(child.pid, signal.SIGKILL if fault == "killed" else signal.SIGTERM)
            signalled = time.monotonic()
            code, starts = child.wait()
            expected = {0, -signal.SIGKILL} if fault == "killed" else {0, 130, -signal.SIGTERM}
            if time.monotonic() - signalled > PATIENCE:
                self.lost.append(f"{fault}: took {time.monotonic() - signalled:.0f} s")
        else:
            child = Child(run, self.log, rng.randrange(int(1.2 * self.largest)), fault == "killed at a byte")
            code, starts = child.wait()
            expected = {0, -signal.SIGXFSZ} if fault == "killed at a byte" else {0, 1}
        self.faults[fault] += 1
        if code not in expected:
            self.lost.append(f"{fault}: ended with {code}")
        self.compare(before, starts, fault)

    def resume(self, run: Path) -> tuple[int, list[tuple[str, int]]]:
        before = newest(run)
        code, starts = Child(run, self.log).wait()
        self.compare(before, starts, "resumed")
        return code, starts

    def compare(self, before: dict[str, int], starts: list[tuple[str, int]], fault: str) -> None:
        for name, step in starts:
            if step < before.get(name, 0):
                self.lost.append(
                    f"{fault}: {name} went on from {step}, there was a checkpoint at {before[name]}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description="Break training runs at random; count the losses.")
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--faults-per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # forked processes must find no threads that were not forked with them
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), arguments.seed)
        runs = range(-(-arguments.faults // arguments.faults_per_run))
        for index in track(runs, "runs", console=Console(file=sys.stderr)):
            left = arguments.faults - index * arguments.faults_per_run
            campaign.one_run(index, min(arguments.faults_per_run, left))
    for kind, count in sorted(campaign.faults.items()):
        print(f"{kind:24} {count:5}")
    print(
        f"{'faults':24} {sum(campaign.faults.values()):5} in {len(runs)} runs, {time.monotonic() - began:.0f} s"
    )
    print(f"{'checkpoints lost':24} {len(campaign.lost):5}")
    print(f"{'results that differ':24} {len(campaign.different):5}")
    for line in [*campaign.lost, *campaign.different]:
        print(line)
    sys.exit(bool(campaign.lost or campaign.different))


if __name__ == "__main__":
    main()
