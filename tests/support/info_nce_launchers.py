"""The InfoNCE launchers beside float64 truth, for any options."""

from __future__ import annotations

import torch
from contrastive_truth import info_nce_truth
from torch import Tensor

from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd
from cmx_fast.ops.info_nce import Options

DEFAULTS = Options(normalize=True)


def problem(n, m, d, *, batch=1, banks=(), dtype=torch.float32) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Queries, keys and unit-length banks on the CPU."""
    query, key = torch.randn(batch, n, d), torch.randn(batch, m, d)
    bank = [torch.nn.functional.normalize(torch.randn(k, d), dim=-1).to(dtype) for k in banks]
    return query.to(dtype), key.to(dtype), bank


def run(
    device,
    grad_loss,
    query,
    key,
    scale,
    bank=(),
    target=None,
    need_query=True,
    need_key=True,
    cache=False,
    **options,
):
    """Loss, dquery, dkey, dscale of the launchers, on the CPU."""
    options = DEFAULTS._replace(**options)
    on_device = [x.to(device) for x in (query, key, scale)]
    bank = [rows.to(device) for rows in bank]
    target = target if target is None else target.to(device)
    loss, row_stats, col_stats, saved = info_nce_fwd(*on_device, bank, target, *options, cache)
    gradients = info_nce_bwd(
        grad_loss.to(device),
        *on_device,
        bank,
        target,
        *options,
        row_stats,
        col_stats,
        saved,
        need_query,
        need_key,
    )
    return [x.cpu() for x in (loss, *gradients)]


def truth(grad_loss, query, key, scale, bank=(), target=None, **options):
    """The same in float64."""
    query, key, scale = (x.double().requires_grad_() for x in (query, key, scale))
    bank = [rows.double() for rows in bank]
    loss = info_nce_truth(query, key, scale, bank, target, **DEFAULTS._replace(**options)._asdict())
    gradients = torch.autograd.grad((loss * grad_loss.double()).sum(), (query, key, scale), allow_unused=True)
    return [
        loss.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip((query, key, scale), gradients)),
    ]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(device, query, key, scale, bank=(), target=None, tolerance=3e-6, cache=False, **options):
    """Compare loss and all gradients, judged as vectors."""
    scale, grad_loss = torch.tensor(scale), torch.randn(query.shape[:2])
    actual = run(device, grad_loss, query, key, scale, bank, target, cache=cache, **options)
    expected = truth(grad_loss, query, key, scale, bank, target, **options)
    assert [x.dtype for x in actual] == [torch.float32, query.dtype, key.dtype, torch.float32]
    assert [x.shape for x in actual] == [x.shape for x in expected]
    for name, x, y in zip(("loss", "dquery", "dkey"), actual, expected):
        assert relative(x, y) < tolerance, (name, relative(x, y))
    # dscale is a sum of terms of both signs: measured by the size of the terms.
    size = grad_loss.abs().sum().item() * (4 if options.get("similarity") == "sql2" else 2)
    assert abs(actual[3].item() - expected[3].item()) < tolerance * size
