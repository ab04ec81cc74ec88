"""Training that is killed and stopped in every stage: what it computes must not show it."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

from cmx_fast.train.loop import Stage


class Killed(BaseException):
    """SIGKILL in the eyes of the run folder: no checkpoint is written, and nobody catches it."""


def train_through_stops(train: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Call ``train``, which resumes, until it ends; the stages that it began, in order.

    Every stage is killed in its second step, long before its first checkpoint, so that the next call loads what was
    trained before and builds the rest anew. Then it gets SIGINT in the middle, and goes on from the checkpoint. Each
    call finds the global generator elsewhere.
    """
    made, begun = Stage.__init__, Counter[str]()

    def stopping(self, name, module, groups, steps, batches, *rest, **more):
        def with_stops(start):
            begun[name] += 1
            for step, batch in enumerate(batches(start), start + 1):
                if begun[name] == 1 and step == min(2, steps):
                    raise Killed
                if begun[name] == 2 and step == (steps + 1) // 2:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

        made(self, name, module, groups, steps, with_stops, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "__init__", stopping)
        for call in range(100):
            torch.manual_seed(1000 + call)
            try:
                train()
            except (Killed, typer.Exit):
                continue
            assert set(begun.values()) == {3}, f"begun: {begun}"
            return list(begun)
    raise AssertionError(f"a hundred calls did not reach the end; begun: {begun}")


def timeless(run: Path) -> list[dict[str, object]]:
    """The metrics of a run folder but for the seconds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics and every weight of two run folders are the same."""
    assert timeless(one) == timeless(other)
    files = [{file.relative_to(run) for file in run.rglob("*.pt")} for run in (one, other)]
    assert files[0] == files[1] and files[0]
    for file in files[0]:
        same, expected = (torch.load(run / file, weights_only=True).get("module", {}) for run in (one, other))
        assert same.keys() == expected.keys()
        for name, value in expected.items():
            assert value.equal(same[name]), f"{file}: {name}"
