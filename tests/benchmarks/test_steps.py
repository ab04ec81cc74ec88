"""Whole steps at a few samples: both contenders compute the same, parts add up, and what differs is not reported."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from cmx_fast.benchmarks import steps
from cmx_fast.benchmarks.harness.provider import OURS
from cmx_fast.benchmarks.systems import SYSTEMS, formulas_only
from cmx_fast.cli import app
from cmx_fast.ops import _implementations
from cmx_fast.systems.c2l import model as c2l
from cmx_fast.train.fabric import new_fabric

FEW = {"csir": 4, "cmac": 2, "c2l": 2, "sound2scene": 3}


class Kernels(TorchDispatchMode):
    """Names of this package's operators that run within."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cmx_fast":
            self.names.add(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fabric():
    return new_fabric("fp32")


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_a_step_with_formulas_runs_no_kernel_and_gives_the_same_loss(name, fabric):
    ran, losses = {}, []
    for contender, context in steps.CONTENDERS.items():
        torch.manual_seed(0)
        with context(), Kernels() as kernels:
            trainer = steps.Trainer(fabric, SYSTEMS[name]("demo", FEW[name], fabric.device))
            losses.append(float(trainer.step()))
            assert set(trainer.timed()) >= {"data", "forward", "loss", "backward", "optimiser"}
        ran[contender] = kernels.names
    assert ran[OURS] and not ran[steps.FORMULAS]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.fixture
def with_kernels_for_meta(monkeypatch):
    """Operators choose on "meta" as on a GPU. Left out there: autocast, which does not know that device, and C2L's
    matching of parts, which is solved on the host."""
    automatic, autocast = _implementations.automatic, torch.autocast
    monkeypatch.setattr(_implementations, "automatic", lambda op, _, *rest: automatic(op, "cuda", *rest))
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *rest, **options: (
            contextlib.nullcontext() if device == "meta" else autocast(device, *rest, **options)
        ),
    )
    monkeypatch.setattr(c2l, "match_parts", lambda similarity: similarity.argmax(2))


@pytest.mark.skipif(
    _implementations.automatic("info_nce", "cuda")[0] != "triton",
    reason="no Triton or no C++ extension: a GPU would run formulas, and some of these do wait",
)
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_a_step_never_waits_for_the_device(request, name):
    """Tensors of device "meta" hold no values: where the host asked for one, a GPU would have to finish first."""
    preset = "demo" if name == "c2l" else "paper"  # CMAC has banks in the paper's alone
    clusters = {}  # found once an epoch, and that waits
    if name == "c2l":
        clusters = SYSTEMS[name](preset, FEW[name], torch.device("cpu")).cluster()
    request.getfixturevalue("with_kernels_for_meta")
    system = SYSTEMS[name](preset, FEW[name], torch.device("meta"))
    optimizer = system.optimizer(system.groups)
    system.module.train()
    for _ in range(2):
        batch = system.prepare() | {key: value.to("meta") for key, value in clusters.items()}
        loss = system.module.losses(system.module(batch), batch)["loss"]
        loss.backward()
        optimizer.step()
        if system.after_step is not None:
            system.after_step()
    assert loss.is_meta


def test_formulas_are_for_the_block_alone():
    from cmx_fast.ops import implementations

    before = implementations()
    with formulas_only():
        assert {choice["cpu"][0] for choice in implementations().values()} == {"reference"}
    assert implementations() == before


def test_a_part_within_another_counts_for_itself():
    parts = steps.Parts("cpu")
    with parts.within("forward"):
        time.sleep(0.02)
        with parts.within("data"):
            time.sleep(0.05)
        time.sleep(0.02)
    seconds = parts.seconds()
    assert set(seconds) == {"forward", "data"}
    assert 0.04 <= seconds["forward"] < 0.05 + 0.03 and 0.05 <= seconds["data"] < 0.08


def measured(fabric, **changes):
    options = {"batch": 2, "precision": "fp32", "compile": False, "rounds": 1} | changes
    return steps.measure("sound2scene", "demo", fabric, **options)


def test_a_table_fits_a_terminal_of_78_columns(fabric):
    record = measured(fabric)
    text = steps.table(record)
    assert max(map(len, text.splitlines())) <= steps.WIDTH
    assert "times as fast" in text
    row = record["contenders"][OURS]
    assert sum(row["parts_ms"].values()) == pytest.approx(row["ms"], rel=1e-6)


def test_contenders_that_compute_different_losses_get_no_figure(fabric, monkeypatch):
    losses = iter([1.0, 1.0, 1.5])  # the first of formulas, the one its memory is measured by, our first
    monkeypatch.setattr(steps.Trainer, "step", lambda self: torch.tensor(next(losses, 1.0)))
    record = measured(fabric)
    assert record["differ"] == pytest.approx(0.5) and not record["contenders"]
    assert "NOT REPORTED" in steps.table(record)


def test_a_step_that_does_not_fit_is_named(fabric, monkeypatch):
    step = steps.Trainer.step
    calls = []

    def fits_once(self):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return step(self)

    monkeypatch.setattr(steps.Trainer, "step", fits_once)
    record = measured(fabric)
    assert "does not fit" in record["contenders"][steps.FORMULAS]["skipped"]
    assert record["contenders"][OURS]["ms"] > 0
    assert "does not fit" in steps.table(record)


def test_the_command_writes_what_it_prints(tmp_path):
    arguments = ["bench", "steps", "sound2scene", "--batch", "2", "--rounds", "1", "--precision", "bf16"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "steps").glob("*.json")
    document = json.loads(path.read_text())
    assert document["precision"] == "bf16" and document["preset"] == "demo"
    assert set(document["systems"]["sound2scene"]["contenders"]) == {OURS, steps.FORMULAS}
    assert CliRunner().invoke(app, ["bench", "steps", "cisr"]).exit_code != 0
