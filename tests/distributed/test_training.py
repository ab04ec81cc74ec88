"""Training in several processes: stopped, resumed, replicated or in pieces, it is one process's."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from distributed_training import train_with_a_bank

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed without gloo"
)


def spawn(how, world, folder):
    mp.spawn(functools.partial(train_with_a_bank, how), (world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_stopped_and_resumed_training_is_one_processs(how, tmp_path):
    """Weights, banks and losses; several processes hold the same, and under FSDP each its part until the end."""
    folders = [tmp_path / str(world) for world in (1, 2)]
    for folder in folders:
        folder.mkdir()
    (whole,), parts = (
        spawn(how if world > 1 else "ddp", world, folder) for world, folder in zip((1, 2), folders)
    )
    for part in parts:
        assert part["interruptions"] == 1 and part["sharded"] == (how == "fsdp")
    for name, value in whole["state"].items():
        assert parts[0]["state"][name].equal(parts[1]["state"][name]), name
        torch.testing.assert_close(parts[0]["state"][name], value, rtol=1e-4, atol=1e-5)
    assert parts[0]["losses"] == pytest.approx(whole["losses"], rel=1e-5)
