"""Blocks of a softmax: joined statistics and summed gradients are those of one softmax over everything."""

from __future__ import annotations

import pytest
import torch
from operator_contract import vector_error

from cmx_fast.ops import block_gradients, block_statistics
from cmx_fast.ops.softmax_block import join
from cmx_fast.reference.info_nce import similarity_matrix

SIMILARITIES = ("dot", "l2", "sql2")
IMPLEMENTATIONS = ["reference"] + ["cpp"] * hasattr(torch.ops.cmx_fast, "softmax_block_fwd")


def with_log_sum_exp(statistics, scale):
    """Its first two rows as the one number that they are."""
    return torch.cat([(scale * statistics[0] + statistics[1])[None], statistics[2:]])


def softmax(n):
    return torch.stack([torch.randn(n) + 3, torch.rand(n), 0.01 * torch.rand(n)]).double()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("with_excluded", [False, True])
@pytest.mark.parametrize(("n", "sizes"), [(1, (1,)), (37, (60, 1, 350)), (130, (5, 97))])
def test_joined_statistics_are_the_whole_softmaxs(n, sizes, similarity, with_excluded, impl):
    x, y, scale = torch.randn(n, 7).double(), torch.randn(sum(sizes), 7).double(), torch.tensor(2.5).double()
    excluded = torch.randint(sum(sizes), (n,)) if with_excluded else None
    blocks, start = [], 0
    for size in sizes:
        own = None if excluded is None else excluded - start
        blocks.append(
            block_statistics(
                x, y[start : start + size], scale, excluded=own, similarity=similarity, impl=impl
            )
        )
        start += size
    u = similarity_matrix(x, y, similarity)
    out = torch.zeros(n, sum(sizes), dtype=torch.bool)
    if excluded is not None:
        out[torch.arange(n), excluded] = True
    logits = (scale * u).masked_fill(out, float("-inf"))
    whole = torch.stack(
        [logits.logsumexp(1), (logits.softmax(1).nan_to_num() * u).sum(1), u.masked_fill(out, 0).sum(1)]
    )
    torch.testing.assert_close(with_log_sum_exp(join(torch.stack(blocks), scale), scale), whole)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("with_excluded", [False, True])
def test_gradients_are_those_of_the_logits(similarity, with_columns, with_excluded, impl):
    n, m = 40, 110
    x, y = torch.randn(n, 6).double().requires_grad_(), torch.randn(m, 6).double().requires_grad_()
    scale = torch.tensor(1.5).double()
    rows, columns = softmax(n), softmax(m) if with_columns else None
    excluded = torch.randint(-1, m, (n,)) if with_excluded else None
    u = similarity_matrix(x, y, similarity)
    slope = rows[1][:, None] * torch.exp(scale * (u.detach() - rows[0][:, None])) - rows[2][:, None]
    if columns is not None:
        slope += columns[1] * torch.exp(scale * (u.detach() - columns[0])) - columns[2]
    if excluded is not None:
        slope[excluded[:, None] == torch.arange(m)] = 0
    truth = torch.autograd.grad(u, (x, y), scale * slope)
    actual = block_gradients(
        x.detach(), y.detach(), scale, rows, columns, excluded=excluded, similarity=similarity, need_y=True, impl=impl
    )  # fmt: skip
    for f, right in zip(actual, truth, strict=True):
        assert vector_error(f, right) < 1e-11


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("with_excluded", [False, True])
def test_rows_against_each_other(similarity, with_excluded, impl):
    n, scale = 50, torch.tensor(1.5).double()
    x, rows = torch.randn(n, 6).double().requires_grad_(), softmax(n)
    excluded = torch.arange(n).view(-1, 2).flip(1).flatten() if with_excluded else None
    out = torch.eye(n, dtype=torch.bool)
    if excluded is not None:
        out[torch.arange(n), excluded] = True
    u = similarity_matrix(x, x, similarity)
    logits = (scale * u.detach()).masked_fill(out, float("-inf"))
    actual = block_statistics(x.detach(), None, scale, excluded=excluded, similarity=similarity, impl=impl)
    torch.testing.assert_close(with_log_sum_exp(actual, scale)[0], logits.logsumexp(1))
    torch.testing.assert_close(actual[3], u.detach().masked_fill(out, 0).sum(1))
    slope = rows[1][:, None] * torch.exp(logits - scale * rows[0][:, None]) - rows[2][:, None]
    (truth,) = torch.autograd.grad(u, x, (scale * slope).masked_fill(out, 0))
    dx, _ = block_gradients(
        x.detach(), None, scale, rows, excluded=excluded, similarity=similarity, impl=impl
    )
    assert vector_error(dx, truth) < 1e-11


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_columns_and_no_rows(impl):
    scale = torch.tensor(2.0)
    empty = block_statistics(torch.randn(3, 4), torch.randn(0, 4), scale, impl=impl)
    for statistics in (empty, join(torch.stack([empty, empty]), scale)):
        assert statistics[:2].eq(float("-inf")).all() and statistics[2:].eq(0).all()
    assert block_statistics(torch.randn(0, 4), torch.randn(5, 4), scale, impl=impl).shape == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, y, scale = torch.randn(5, 4).to(dtype), torch.randn(6, 4).to(dtype), torch.tensor(2.0)
    rows = softmax(5).float()
    for other in (y, None):
        torch.library.opcheck(torch.ops.cmx_fast.softmax_block_fwd, (x, other, scale, None, "l2"))
        arguments = (x, other, scale, torch.arange(5), "dot", rows, None, True, other is not None)
        torch.library.opcheck(torch.ops.cmx_fast.softmax_block_bwd, arguments)
