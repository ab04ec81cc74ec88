"""Trains a stage on Lightning Fabric: step, log, checkpoint, stop on Ctrl-C, resume exactly."""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, TypeVar, cast

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cmx_fast.train import sharding
from cmx_fast.train.run_folder import RunFolder
from cmx_fast.train.trainable import Batch, Trainable

Module = TypeVar("Module", bound=Trainable)


def warmup_and_cosine(step: int, steps: int) -> float:
    """The factor on the learning rate: linear over the first 5 % of the steps, then a cosine to zero."""
    warmup = max(1, steps // 20)
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def constant(step: int, steps: int) -> float:
    """The factor 1 at every step: no schedule."""
    return 1.0


@dataclass
class Stage(Generic[Module]):
    """A module to train, the batches to train it on, and for how long.

    Attributes:
        name: unique within the run; names the weights' file ("seed0/csir").
        module: an ``nn.Module`` with losses.
        groups: parameter groups, each with its peak "lr"; their parameters are the module's.
        batches: gives the batches from a number on, on the device; the same ones at every call.
        seed: seeds dropout and augmentation, whatever ran before.
        optimizer: makes the optimiser of the groups, with ``weight_decay``.
        turns: players that step one after the other on each batch, each the last argument of the module's forward and
            losses; a player that gets no gradient stays as it is.
        labels: tensors of the batch that the losses need from every process; None if they take only their own rows.
        schedule: gives the factor on the learning rates by the step, counted from 0, and the number of steps.
        after_step: called after every step of the optimiser.
        state: kept in checkpoints beside the module, by its ``state_dict`` and ``load_state_dict``.
        evaluation: measures held-out data after every ``evaluate_every`` steps and the last; its numbers become a row
            of their own.
        best: the number of the evaluation that is lowest for the best weights, which are the stage's result; None: the
            last weights are. Processes that don't measure it take the others' word.
        patience: evaluations without a lower number after which training stops; 0: never.
        accumulate: batches per step, whose gradients are averaged, each player's over all of them.
    """

    name: str
    module: Module
    groups: list[dict[str, Any]]
    steps: int
    batches: Callable[[int], Iterator[Batch]]
    seed: int
    weight_decay: float = 0.0
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    turns: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = ("space",)
    schedule: Callable[[int, int], float] = warmup_and_cosine
    after_step: Callable[[], None] | None = None
    state: Any = None
    evaluation: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 0
    best: str | None = None
    patience: int = 0
    accumulate: int = 1


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived and the checkpoint is written."""


def run_stage(
    fabric: Fabric,
    run: RunFolder,
    stage: Stage[Module],
    *,
    compile: bool = False,
    checkpoint_every: int = 500,
) -> Module:
    """Train ``stage.module``, or load its weights where the run has finished this stage before.

    An interrupted stage continues from its checkpoint. Weights, optimiser, random number generators and the interval's
    running means are restored, and the batches go on from that step: so every later number is the same.

    Returns:
        The trained module: ``stage.module`` itself, or under FSDP, which leaves that in pieces, a whole copy.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
        ValueError: the loss of a batch is not finite; names the file that holds the batch. On a GPU it is raised a step
            later, so that no step waits for a loss.
        OSError: the disk is full; the checkpoint before stays.
    """
    network = cast(nn.Module, stage.module)  # a protocol can't say so
    finished = run.weights(stage.name)
    network.to(fabric.device)
    if finished is not None:
        network.load_state_dict(finished)
        return stage.module
    torch.manual_seed(stage.seed * 1_000_003 + fabric.global_rank)
    if run.config.get("sync_bn"):
        # In place, but for a stage that is a batch norm itself; parameters and their names stay.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    state = run.checkpoint(stage.name)
    if state is not None:
        network.load_state_dict(state["module"])
    names = sharding.parameter_names(network, stage.groups)
    sharded = sharding.is_on(fabric)
    trained = copy.deepcopy(network).cpu() if sharded else network
    module = fabric.setup_module(cast(nn.Module, torch.compile(network)) if compile else network)
    groups = sharding.parameter_groups(network, stage.groups, names)
    optimizer = set_up_optimizer(fabric, stage.optimizer, groups, weight_decay=stage.weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    start, sums, counted, spent = 0, dict[str, float | Tensor](), 0, 0.0
    best = Best(stage.best, stage.patience)
    if state is not None:
        sharding.load_optimizer(network, optimizer, state["optimizer"])
        if stage.state is not None:
            stage.state.load_state_dict(state["state"])
        restore_rng(state["rng"], fabric, stage.seed * 1_000_003 + state["step"])
        start, sums, counted, spent = state["step"], state["sums"], state["counted"], state["seconds"]
        best.load_state_dict(state["best"])
    run.rewind(stage.name, -1 if state is None else start)
    turns: list[tuple[str, ...]] = [(name,) for name in stage.turns] or [()]
    interval = max(1, stage.steps // 20)
    began = time.monotonic() - spent
    network.train()
    watched = LossWatch(run, stage.name)
    batches = stage.batches(start * stage.accumulate)
    pace = Pace(fabric.world_size)
    with stop_requested() as stop, progress(stage, start, fabric.is_global_zero) as shown:
        ended = stage.patience > 0 and any_rank(fabric, best.exhausted)  # interrupted at its last step
        for step in range(start + 1, start + 1 if ended else stage.steps + 1):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * stage.schedule(step - 1, stage.steps)
            sharding.unshard(network)  # forward would: but some batches are labelled with the module first
            parts = [pace.next(batches) for _ in range(stage.accumulate)]
            for turn in turns:
                optimizer.zero_grad()
                for number, batch in enumerate(parts, 1):
                    with fabric.no_backward_sync(module, enabled=number < len(parts)):
                        outputs = gather(fabric, module(batch, *turn), batch, stage.labels)
                        losses = stage.module.losses(*outputs, *turn)
                        fabric.backward(losses["loss"] / len(parts))
                    watched(step, losses["loss"], batch)
                    for name, value in losses.items():
                        sums[name] = sums.get(name, 0.0) + value.detach() / len(parts)
                optimizer.step()
            if stage.after_step is not None:
                stage.after_step()
            counted += 1
            shown(step, None, pace)
            if step % interval == 0 or step == stage.steps:
                means = {name: float(value) / counted for name, value in sums.items()}
                sums, counted = {}, 0
                run.log(
                    {
                        "stage": stage.name,
                        "step": step,
                        **means,
                        "lr": optimizer.param_groups[-1]["lr"],
                        "seconds": round(time.monotonic() - began, 2),
                    }
                )
                shown(step, means, pace)
                pace.restart()
            if stage.evaluation is not None and (step % stage.evaluate_every == 0 or step == stage.steps):
                with sharding.whole(network):
                    numbers = stage.evaluation()
                run.log({"stage": stage.name, "step": step, **numbers})
                if any_rank(fabric, best.improved(numbers)):
                    best.keep(step, sharding.module_state(network, everywhere=True))
                network.train()
            stopping = any_rank(fabric, stop())
            last = step == stage.steps or (stage.patience > 0 and any_rank(fabric, best.exhausted))
            if stopping or last:
                watched.settle()
            if stopping or (step % checkpoint_every == 0 and step < stage.steps):
                run.save_checkpoint(
                    {
                        "stage": stage.name,
                        "step": step,
                        "module": sharding.module_state(network),
                        "optimizer": sharding.optimizer_state(network, optimizer),
                        "state": None if stage.state is None else stage.state.state_dict(),
                        "best": best.state_dict(),
                        "rng": rng(fabric),
                        "counted": counted,
                        "sums": {name: float(value) for name, value in sums.items()},
                        "seconds": time.monotonic() - began,
                    }
                )
            if stopping:
                raise Interrupted(f"stopped in {stage.name} after step {step} of {stage.steps}")
            if last:
                break
    if best.weights is not None:
        trained.load_state_dict(best.weights)
    elif sharded:
        trained.load_state_dict(sharding.module_state(network, everywhere=True))
    if sharded:
        trained.to(fabric.device)
    run.finish(stage.name, trained.state_dict())
    fabric.barrier()
    return cast(Module, trained)


class Best:
    """The weights of a stage at the lowest number ``name`` of its evaluations, where it is to end with them.

    Attributes:
        weights: a copy of them; None before the first evaluation, or without a ``name``.
        step: the step that they are of.
    """

    def __init__(self, name: str | None, patience: int):
        self.name, self.patience = name, patience
        self.weights: dict[str, Tensor] | None = None
        self.step, self._lowest, self._since = 0, math.inf, 0

    def improved(self, numbers: dict[str, float]) -> bool:
        """Note an evaluation's numbers; True if they are the lowest so far."""
        if self.name is None or self.name not in numbers:
            return False
        lower = numbers[self.name] < self._lowest
        self._since = 0 if lower else self._since + 1
        self._lowest = min(self._lowest, numbers[self.name])
        return lower

    def keep(self, step: int, weights: dict[str, Tensor]) -> None:
        """Copy the weights of this step."""
        self.step, self.weights = step, {name: value.detach().clone() for name, value in weights.items()}

    @property
    def exhausted(self) -> bool:
        """True after ``patience`` evaluations without a lower number."""
        return bool(self.patience) and self._since >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "step": self.step, "lowest": self._lowest, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.weights, self.step = state["weights"], state["step"]
        self._lowest, self._since = state["lowest"], state["since"]


class Pace:
    """Samples per second of all processes, and the share of the time that this one waited for batches.

    Only shown, never logged: metrics are the same in an interrupted and a straight run.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self.restart()

    def restart(self) -> None:
        self._began, self._waited, self._samples = time.monotonic(), 0.0, 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, counted."""
        began = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - began
        self._samples += len(next(iter(batch.values()))) * self.processes
        return batch

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{self._samples / seconds:.4g}/s  wait {100 * self._waited / seconds:.0f} %"


class LossWatch:
    """Stops a run at a loss that is not finite, and keeps its batch.

    On a GPU a step's loss is read when the next one has been queued: the device never idles for it.
    """

    def __init__(self, run: RunFolder, stage: str):
        self.run, self.stage = run, stage
        self._last: tuple[int, Tensor, Batch, torch.cuda.Event | None] | None = None

    def __call__(self, step: int, loss: Tensor, batch: Batch) -> None:
        self.settle()
        event = None
        value = loss.detach().to("cpu", non_blocking=True)
        if loss.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._last = step, value, batch, event
        if event is None:
            self.settle()

    def settle(self) -> None:
        """Check the last loss now.

        Raises:
            ValueError: it is not finite.
        """
        if self._last is None:
            return
        step, value, batch, event = self._last
        self._last = None
        if event is not None:
            event.synchronize()
        if not math.isfinite(float(value)):
            file = self.run.save_bad_batch(self.stage, step, batch)
            raise ValueError(
                f"{self.stage}: the loss is {float(value)} at step {step}, its batch is in {file}; look at it, lower "
                "the learning rates, or train with --precision fp32; --resume goes on from the checkpoint before"
            )


def set_up_optimizer(
    fabric: Fabric,
    make: Callable[..., torch.optim.Optimizer],
    groups: list[dict[str, Any]],
    **options: Any,
) -> Any:
    """Make the optimiser of these groups on the fabric; on a GPU one kernel changes all parameters of a group.

    On a CPU that would save 1 to 2 % of a step's time, and change the last bits of recorded results.
    """
    if fabric.device.type == "cuda":
        options["fused"] = True
    return fabric.setup_optimizers(make(groups, **options))


def gather(
    fabric: Fabric, outputs: Batch, batch: Batch, labels: tuple[str, ...] | None
) -> tuple[Batch, Batch]:
    """Outputs and labels of all processes, in float32: a contrastive loss needs the whole batch.

    With ``labels`` None: outputs and batch of this process alone.

    Gradients of the gathered rows are summed over the processes, which DistributedDataParallel's mean undoes.
    """
    outputs = {name: value.float() for name, value in outputs.items()}
    if labels is None:
        return outputs, batch
    chosen = {name: batch[name] for name in labels}
    if fabric.world_size == 1:
        return outputs, chosen
    all_outputs: Any = fabric.all_gather(outputs, sync_grads=True)
    all_labels: Any = fabric.all_gather(chosen)
    return (
        {name: value.flatten(0, 1) for name, value in all_outputs.items()},
        {name: value.flatten(0, 1) for name, value in all_labels.items()},
    )


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """True if the flag is set in any process."""
    if fabric.world_size == 1:
        return flag
    total: Any = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(total > 0)


def rng(fabric: Fabric) -> dict[str, Tensor]:
    """The generator states of every process, (processes, bytes)."""
    states = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(fabric.device)
    gathered: Any = fabric.all_gather(states)
    return {name: value.reshape(fabric.world_size, -1).cpu() for name, value in gathered.items()}


def restore_rng(states: dict[str, Tensor], fabric: Fabric, seed: int) -> None:
    """Restore the generators, or seed them by ``seed`` and rank if the number of processes has changed."""
    if len(states["cpu"]) != fabric.world_size:
        torch.manual_seed(seed * fabric.world_size + fabric.global_rank)
        return
    # Copies: of a row that is not the first, torch 2.11 reads the wrong memory.
    torch.set_rng_state(states["cpu"][fabric.global_rank].clone())
    if "cuda" in states and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][fabric.global_rank].clone(), fabric.device)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM only set a flag; a second Ctrl-C stops at once."""
    requested: list[int] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(signum)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: leave the signals alone
        before = {}
    try:
        yield lambda: bool(requested)
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextmanager
def progress(
    stage: Stage[Any], start: int, enabled: bool
) -> Iterator[Callable[[int, dict[str, float] | None, Pace], None]]:
    """Show steps, the pace and an interval's means: a bar on a terminal, elsewhere a line per interval."""
    console = Console(file=sys.stderr)

    def text(means: dict[str, float]) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in means.items())

    if not enabled:
        yield lambda step, means, pace: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[means]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=start, means="", pace="")

            def advance(step: int, means: dict[str, float] | None, pace: Pace) -> None:
                bar.update(task, completed=step, pace=str(pace))
                if means is not None:
                    bar.update(task, means=text(means))

            yield advance
    else:

        def line(step: int, means: dict[str, float] | None, pace: Pace) -> None:
            if means is not None:
                print(
                    f"{stage.name}  step {step}/{stage.steps}  {text(means)}  {pace}",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
