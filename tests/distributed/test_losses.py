"""Losses over 2, 3 and 4 processes: the operator's on the whole batch, for every option; ring memory; DDP."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from distributed_cases import (
    count_traffic,
    held_rows,
    main,
    train_in_parallel,
    train_on_everything,
)
from process_groups import run_ranks

from cmx_fast import distributed, ops
from cmx_fast.benchmarks.scaling import Rates, ring_step, table

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch.distributed without gloo"
)

LIMIT = {"float64": 1e-12, "float32": 1e-5}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_losses_and_gradients_are_the_whole_batchs(world, tmp_path):
    for rank, result in enumerate(run_ranks(main, world, tmp_path)):
        assert len(result) == 4
        for (dtype, exchange), differences in result.items():
            assert len(differences) > 40
            wrong = {name: d for name, d in differences.items() if not d < LIMIT[dtype]}
            assert not wrong, (rank, dtype, exchange)


@pytest.mark.parametrize("exchange", ["ring", "gather"])
def test_data_parallel_training_is_one_process_training(exchange, tmp_path):
    whole = train_on_everything()
    for result in run_ranks(train_in_parallel[exchange], 3, tmp_path):
        assert result["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_ring_holds_two_others_rows_however_many_there_are(world, tmp_path):
    for result in run_ranks(held_rows, world, tmp_path):
        assert result["ring"] == (min(2, world - 1), True, world)
        assert result["gather"] == (world - 1, True, world)


def test_the_ring_sends_what_the_scaling_table_counts(tmp_path):
    step = ring_step(3, 40, 24, element=4)
    assert run_ranks(count_traffic, 3, tmp_path) == [(step.sent, step.messages)] * 3


def test_the_scaling_table():
    lines = table(32768, 512, Rates())
    assert [int(line.split()[0]) for line in lines[4:]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    # Compute grows with the batch, what a process holds does not.
    columns = [line.split() for line in lines[4:]]
    assert float(columns[-1][2]) == pytest.approx(128 * float(columns[0][2]), rel=0.01)
    assert len({line[-2] for line in columns}) == 1


def test_one_process_is_the_operator():
    x, y = torch.randn(2, 6, 4)
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    assert distributed.info_nce(x, y, 3.0).equal(ops.info_nce(x, y, 3.0))
    assert distributed.supcon(x, labels).equal(ops.supcon(x, labels))
    assert distributed.sigmoid_contrastive(x, y, 3.0).equal(ops.sigmoid_contrastive(x, y, 3.0))
    for result, truth in zip(distributed.kmeans_step(x, y), ops.kmeans_step(x, y), strict=True):
        assert result.equal(truth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: distributed.info_nce(x, x, exchange="fast"), "exchange must be one of 'ring', 'gather'"),
        (lambda x: distributed.supcon(x, torch.ones(6).long(), exchange=1), "exchange must be one of"),
        (lambda x: distributed.info_nce(x[None], x[None]), r"query must have shape \(N, D\) in a process group"),
        (lambda x: distributed.sigmoid_contrastive(x, x, exchange="fast"), "exchange must be one of"),
        (lambda x: distributed.sigmoid_contrastive(x[None], x[None]), r"query must have shape \(N, D\) in a process"),
        (lambda x: distributed.info_nce(x, x[:, :2]), "key has 2 features per row"),
        (lambda x: distributed.supcon(x, torch.ones(6).long(), -1.0), "logit_scale must be positive"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(6, 4))
