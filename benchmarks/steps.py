"""Times whole training steps of the four systems, with the kernels and with the formulas: ``cmx bench steps``.

A step is that of ``cmx train``: data prepared on the device, clustering where the system has it, forward, losses,
backward, optimiser. Both contenders start from the same weights, random numbers and data, and take turns; a system
whose losses differ between them gets no figure.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cmx_fast.train.loop import gather, set_up_optimizer

from .harness import memory, timing
from .harness.provider import OURS
from .systems import SYSTEMS, System, formulas_only

FORMULAS = "formulas"
CONTENDERS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    FORMULAS: formulas_only,
    OURS: contextlib.nullcontext,
}
PARTS = ("data", "clusters", "forward", "loss", "backward", "optimiser")
#: The largest relative difference between the first losses of the two contenders.
AGREEMENT = {"fp32": 1e-3, "bf16": 3e-2}
WIDTH = 78


class Parts:
    """The seconds of each part of a step; a part within another counts for itself alone."""

    def __init__(self, device: str):
        self._marks = timing.Marks(device)
        self._now: list[str] = []
        self._entered: list[str] = []

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        self._now.append(part)
        self._switch()
        yield
        self._now.pop()
        self._switch()

    def _switch(self) -> None:
        self._marks.mark()
        self._entered.append(self._now[-1] if self._now else "")

    def seconds(self) -> dict[str, float]:
        """The seconds by part, in the order of PARTS, of the parts that the step has."""
        sums = dict.fromkeys(PARTS, 0.0)
        for part, seconds in zip(self._entered, self._marks.seconds(), strict=False):
            if part:
                sums[part] += seconds
        return {part: seconds for part, seconds in sums.items() if part in self._entered}


class Trainer:
    """A system's training, a step per call, as in :func:`cmx_fast.train.loop.run_stage`."""

    def __init__(self, fabric: Fabric, system: System, *, compile: bool = False):
        self.fabric, self.system = fabric, system
        module = torch.compile(system.module) if compile else system.module
        self.module = fabric.setup_module(module)
        self.optimizer = set_up_optimizer(fabric, system.optimizer, system.groups)
        self.parts: Parts | None = None
        if not compile:  # clocks must not interrupt a compiled graph
            for module, name, part in system.inner:
                setattr(module, name, self._watched(getattr(module, name), part))
        system.module.train()

    def _watched(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def watched(*args: Any, **options: Any) -> Any:
            with self._part(part):
                return method(*args, **options)

        return watched

    def _part(self, part: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.parts is None else self.parts.within(part)

    def step(self) -> Tensor:
        """Make a step; returns the loss, detached."""
        torch.manual_seed(0)
        system, fabric = self.system, self.fabric
        with self._part("data"):
            batch = system.prepare()
        if system.cluster is not None:
            with self._part("clusters"), fabric.autocast():
                batch |= system.cluster()
        with self._part("forward"):
            outputs = gather(fabric, self.module(batch), batch, system.labels)
        with self._part("loss"):
            loss = system.module.losses(*outputs)["loss"]
        with self._part("backward"):
            self.optimizer.zero_grad()
            fabric.backward(loss)
        with self._part("optimiser"):
            self.optimizer.step()
            if system.after_step is not None:
                system.after_step()
        return loss.detach()

    def timed(self) -> dict[str, float]:
        """Make a step; returns the seconds of each part."""
        self.parts = Parts(self.fabric.device.type)
        self.step()
        seconds, self.parts = self.parts.seconds(), None
        return seconds


def measure(
    name: str, preset: str, fabric: Fabric, *, batch: int | None, precision: str, compile: bool, rounds: int
) -> dict[str, Any]:
    """Median milliseconds of a step and of its parts, and its peak memory, for each contender.

    A contender whose step does not fit into memory has the reason in place of figures.
    """
    device = fabric.device
    rows: dict[str, dict[str, Any]] = {}
    trainers, losses, title = {}, {}, ""
    for contender, context in CONTENDERS.items():
        torch.manual_seed(0)
        system = SYSTEMS[name](preset, batch, device)
        title = system.title
        try:
            with context():
                trainer = Trainer(fabric, system, compile=compile)
                losses[contender] = float(trainer.step())  # and makes the optimiser's state
                rows[contender] = {"peak_mb": _peak(trainer, device.type)}
            trainers[contender] = trainer
        except torch.OutOfMemoryError:
            rows[contender] = {"skipped": "its step does not fit into memory"}
        memory.release(device.type)  # after the block: within, the error holds the step's tensors
    record = {"title": title, "losses": losses, "contenders": rows}
    if len(losses) == 2:
        apart = abs(losses[OURS] - losses[FORMULAS]) / max(abs(losses[FORMULAS]), 1e-6)
        if not apart <= AGREEMENT[precision]:
            return record | {"differ": apart, "contenders": {}}
    samples: dict[str, list[dict[str, float]]] = {contender: [] for contender in trainers}
    for _ in range(rounds):
        for contender, trainer in trainers.items():
            with CONTENDERS[contender]():
                samples[contender].append(trainer.timed())
    for contender, timed_steps in samples.items():
        parts = {
            part: 1e3 * statistics.median(sample[part] for sample in timed_steps) for part in timed_steps[0]
        }
        rows[contender] |= {
            "ms": 1e3 * statistics.median(sum(sample.values()) for sample in timed_steps),
            "parts_ms": parts,
        }
    return record


def _peak(trainer: Trainer, device: str) -> float | None:
    """The MB of a step beyond weights, optimiser and data; None where this operating system doesn't tell."""
    gc.collect()
    try:
        peak = memory.extra_peak if device == "cpu" else memory.cuda_extra_peak
        return peak(trainer.step) / memory.MB
    except memory.MemoryMeterError:
        return None


def table(record: dict[str, Any]) -> str:
    """A table of one system: a line for each contender with the parts' shares of its time; at most 78 columns."""
    heads = "".join(f"{part:>{max(6, len(part) + 1)}}" for part in PARTS)
    lines = [record["title"][:WIDTH], f"{'':12}{'ms':>8}{'peak MB':>9}{heads}"]
    if "differ" in record:
        lines.append(f"  NOT REPORTED: the first losses are {record['differ']:.1e} apart, relative")
    for contender, row in record["contenders"].items():
        if "skipped" in row:
            lines.append(f"  {contender:10}{row['skipped']}")
            continue
        shares = "".join(
            f"{row['parts_ms'][part] / sum(row['parts_ms'].values()):>{max(6, len(part) + 1)}.0%}"
            if part in row["parts_ms"]
            else f"{'-':>{max(6, len(part) + 1)}}"
            for part in PARTS
        )
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        milliseconds = f"{row['ms']:.0f}" if row["ms"] >= 1000 else f"{row['ms']:.3g}"
        lines.append(f"  {contender:10}{milliseconds:>8}{peak:>9}{shares}")
    rows = [row for row in record["contenders"].values() if "ms" in row]
    if len(rows) == 2:
        lines.append(f"  {'':10}{rows[0]['ms'] / rows[1]['ms']:.2f} times as fast as with formulas")
    return "\n".join(lines)
