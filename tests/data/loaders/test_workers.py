from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cmx_fast.data.loaders.workers import load_batches


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The loader looks every five seconds whether its workers live; here it looks more often."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


class Items(Dataset):
    """Numbers; a worker that reads ``deadly`` is killed, ``times`` times over all processes."""

    def __init__(self, folder, deadly=(), times=1):
        self.folder, self.deadly, self.times = folder, deadly, times

    def __getitem__(self, index):
        marks = self.folder / f"{index}-{os.getpid()}"
        if index in self.deadly and len(list(self.folder.glob(f"{index}-*"))) < self.times:
            marks.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)


def endless(count=None):
    step = 0
    while count is None or step < count:
        yield [3 * step, 3 * step + 1, 3 * step + 2]
        step += 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(tmp_path, workers):
    batches = list(load_batches(Items(tmp_path), endless(7), workers=workers))
    assert [batch.tolist() for batch in batches] == list(endless(7))


def test_workers_that_die_are_started_again_and_nothing_is_lost(tmp_path, capfd):
    handler = signal.getsignal(signal.SIGCHLD)
    loader = load_batches(Items(tmp_path, deadly=(4, 20)), endless(), workers=2)
    batches = [next(loader).tolist() for _ in range(12)]
    loader.close()
    assert batches == list(endless(12))
    assert capfd.readouterr().err.count("a worker died and is started again") == 2
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_batch_that_kills_every_worker_is_named(tmp_path):
    loader = load_batches(Items(tmp_path, deadly=(7,), times=99), endless(), workers=1)
    assert [next(loader).tolist() for _ in range(2)] == list(endless(2))
    with pytest.raises(RuntimeError, match=r"a worker died 3 times at items \[6, 7, 8\]"):
        next(loader)


def test_errors_of_the_data_are_passed_on(tmp_path):
    class Broken(Items):
        def __getitem__(self, index):
            raise ValueError("no such picture")

    with pytest.raises(ValueError, match="no such picture"):
        list(load_batches(Broken(tmp_path), endless(2), workers=1))
