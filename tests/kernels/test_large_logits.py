"""The launchers at logits of any size: float64's losses and gradients, of rows whose products are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmx_fast import reference

pytest.importorskip("triton")
import info_nce_launchers

from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd
from cmx_fast.kernels.common import library
from cmx_fast.kernels.softmax_block import softmax_block_bwd, softmax_block_fwd
from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd
from cmx_fast.ops.softmax_block import join, softmax_slopes

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
SCALES = (2.0**-90, 300.0, 2.0**28, 2.0**60, 2.0**120)


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


def assert_close(actual, truth, scale):
    for f, t in zip(actual, truth, strict=True):
        assert f.isfinite().all()
        torch.testing.assert_close(
            f.double(), t, rtol=1e-5, atol=1e-5 * min(1.0, scale) + 2e-6 * t.abs().max().item()
        )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"within": True, "bank": 5, "label_smoothing": 0.125},
        {"symmetric": False, "similarity": "sql2"},
        {"target": True, "within": True},
        {"bank": 70, "in_batch": False, "symmetric": False, "cache": True},
        {"in_batch": False, "symmetric": False},  # no negative at all
    ],
)
def test_info_nce(device, options, scale):
    options = dict(options)
    query, key = whole_numbers(1, 40, 8), whole_numbers(1, 40, 8)
    bank = [whole_numbers(size, 8) for size in [options.pop("bank", 0)] if size]
    target = torch.randperm(40)[None] if options.pop("target", False) else None
    cache, grad = options.pop("cache", False), torch.ones(1, 40)
    actual = info_nce_launchers.run(
        device, grad, query, key, torch.tensor(scale), bank, target, cache=cache, normalize=False, **options
    )
    leaves = [x.double().requires_grad_() for x in (query, key, torch.tensor(scale))]
    losses = reference.info_nce(
        *leaves, bank=[rows.double() for rows in bank], target=target, reduction="none",
        **{"symmetric": True} | options,
    )  # fmt: skip
    gradients = torch.autograd.grad(losses.sum(), leaves)
    assert_close(actual[:3], [losses.detach(), *gradients[:2]], scale)


@pytest.mark.parametrize("scale", [*SCALES[:-1], 2.0**110])
def test_info_nce_by_chunks(device, scale, monkeypatch):
    monkeypatch.setattr(library, "FEWEST_MULTIPLICATIONS", 0)
    query, key = whole_numbers(1, 20, 300), whole_numbers(1, 20, 300)
    actual = info_nce_launchers.run(
        device, torch.ones(1, 20), query, key, torch.tensor(scale), normalize=False
    )
    leaves = [x.double().requires_grad_() for x in (query, key)]
    losses = reference.info_nce(*leaves, scale, reduction="none")
    assert_close(actual[:3], [losses.detach(), *torch.autograd.grad(losses.sum(), leaves)], scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("classes", [1, 12, 1000])
@pytest.mark.parametrize("rows", [0, 50])
def test_supcon(device, rows, classes, scale):
    x, labels = whole_numbers(40, 8), torch.arange(40) * 7 % classes
    ref, of_ref = (whole_numbers(rows, 8), torch.arange(rows) % classes) if rows else (None, None)
    on_device = [t if t is None else t.to(device) for t in (x, labels, torch.tensor(scale), ref, of_ref)]
    loss, *saved = supcon_fwd(*on_device, False, False)
    dx, dref, _ = supcon_bwd(torch.ones(40).to(device), *on_device, False, *saved, True, rows > 0)
    leaves = [t.double().requires_grad_() for t in (x, ref) if t is not None]
    pairs = {"ref_features": leaves[1], "ref_labels": of_ref} if rows else {}
    losses = reference.supcon(leaves[0], labels, scale, reduction="none", **pairs)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    actual = [t.cpu() for t in (loss, dx, dref)][: 1 + len(leaves)]
    assert_close(actual, [losses.detach(), *gradients], scale)


@pytest.mark.parametrize("scale", SCALES)
def test_softmax_blocks(device, scale):
    x, y, s = whole_numbers(20, 8).to(device), whole_numbers(30, 8).to(device), torch.tensor(scale).to(device)
    blocks = torch.stack(
        [softmax_block_fwd(x, None, s, None, "dot"), softmax_block_fwd(x, y, s, None, "dot")]
    )
    ones, zeros = torch.ones(20).double().to(device), torch.zeros(20).double().to(device)
    slopes = softmax_slopes(join(blocks, s), ones, zeros, s)
    actual = softmax_block_bwd(x, None, s, None, "dot", slopes, None, True, False)[0]
    more, dy = softmax_block_bwd(x, y, s, None, "dot", slopes, None, True, True)
    rows, columns = (t.cpu().double().requires_grad_() for t in (x, y))
    logits = scale * torch.cat([(rows @ rows.T).fill_diagonal_(-torch.inf), rows @ columns.T], 1)
    # Gradients of the log-sum-exps, whose weights log_softmax gives where logits are large.
    weights = logits.detach().log_softmax(1).exp()
    weighted = (weights * logits.nan_to_num(neginf=0)).sum()
    assert_close([(actual + more).cpu(), dy.cpu()], torch.autograd.grad(weighted, (rows, columns)), scale)


@pytest.mark.parametrize("size", [1.0, 2.0**14, 2.0**55])
def test_cluster_cross_entropy(device, size):
    # Opposite centroids: what they are moved by is 0, and products stay exact.
    x, half, target = size * whole_numbers(1, 40, 8), size * whole_numbers(5, 8), torch.randint(10, (1, 40))
    centroids = torch.cat([half, -half])
    on_device = [t.to(device) for t in (x, centroids, target)]
    losses, softmax, labels = cluster_cross_entropy_fwd(*on_device, False)
    dx = cluster_cross_entropy_bwd(
        torch.ones(1, 40).to(device), on_device[0], on_device[1], labels, softmax, False
    )
    exact = x.double().requires_grad_()
    logits = (exact @ centroids.double().T)[0]
    truth = torch.nn.functional.cross_entropy(logits, target[0], reduction="none")
    truth.sum().backward()
    assert_close([losses.cpu()[0], dx.cpu()], [truth.detach(), exact.grad], size)
