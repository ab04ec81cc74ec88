"""The sigmoid contrastive loss whose keys are those of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import ops
from cmx_fast.distributed.exchange import Exchange, own_rows, whole_batch
from cmx_fast.ops import _checks
from cmx_fast.ops.sigmoid_contrastive import (
    SIGLIP_BIAS,
    SIGLIP_SCALE,
    block_key_gradient,
    block_losses,
    check_arguments,
)


@torch.compiler.disable
def sigmoid_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = SIGLIP_SCALE,
    logit_bias: Tensor | float = SIGLIP_BIAS,
    *,
    group: dist.ProcessGroup | None = None,
    exchange: str = "ring",
    averaged: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    """:func:`cmx_fast.ops.sigmoid_contrastive` of the batch that all processes hold together.

    Without ids a query's positive is the key of its row in its own process. Forward, the keys alone travel (with ids
    these, too); backward, the queries and a number per row: no similarity and no gradient does.

    Args:
        query: (N, D), key: (M, D); N and M may differ between processes, and be 0.
        query_ids: (N,), key_ids: (M,) integers that mean the same in all processes.
        group, exchange, averaged: as for :func:`cmx_fast.distributed.info_nce`. The other options are the operator's.

    Returns:
        The loss of the whole batch, the same in every process; with ``reduction="none"`` the (N,) losses of this
        process's queries. The gradients of ``logit_scale`` and ``logit_bias`` are this process's share, too: summed, or
        averaged with ``averaged``, they are the whole.

    Raises:
        TypeError, ValueError: as the operator, and an unknown exchange. An error in one process leaves the others
            waiting, as with every collective. NotImplementedError: second derivatives.

    Memory: as the operator, and with "ring" the rows of two processes, with "gather" of all. Cost of a process: two
    products of its queries with all keys, and two of its keys with all queries backward. One wait for the device (the
    lengths).
    """
    _checks.check_flags(normalize=normalize, averaged=averaged)
    query, key, scale, bias, query_ids, key_ids = check_arguments(
        query, key, logit_scale, logit_bias, query_ids, key_ids, reduction, temperature
    )
    if query.dim() != 2:
        raise ValueError(f"query must have shape (N, D) in a process group, got {tuple(query.shape)}")
    together = Exchange(group, exchange)
    if together.size == 1:
        return ops.sigmoid_contrastive(
            query, key, scale, bias, query_ids=query_ids, key_ids=key_ids, normalize=normalize, reduction=reduction,
            impl=impl,
        )  # fmt: skip
    if normalize:
        query, key = (F.normalize(x.to(scale.dtype), dim=1).to(x.dtype) for x in (query, key))
    counts = together.counts(query, key)
    settings = _Settings(together, counts, query_ids, key_ids, impl)
    losses = _SigmoidContrastive.apply(query, key, scale, bias, settings)
    if reduction == "none":
        return own_rows(losses, together, averaged)
    rows = sum(count[0] for count in counts) if reduction == "mean" else 1
    return whole_batch(losses.sum() / rows, together, averaged)


@dataclass(frozen=True)
class _Settings:
    exchange: Exchange
    counts: list[list[int]]
    query_ids: Tensor | None
    key_ids: Tensor | None
    impl: str

    def positives(
        self, owns: bool, query_ids: Tensor | None, key_ids: Tensor | None, queries: Tensor, keys: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The ids of a block; without any the diagonal of the own block, and no positives in the others."""
        if owns or query_ids is not None:
            return query_ids, key_ids
        return (
            torch.zeros(len(queries), dtype=torch.int64, device=queries.device),
            torch.ones(len(keys), dtype=torch.int64, device=keys.device),
        )


class _SigmoidContrastive(torch.autograd.Function):
    """The losses (N,) of this process's queries."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, s: _Settings) -> Tensor:
        x, numbers = query.detach(), (scale.detach(), bias.detach())
        losses = scale.new_zeros(len(x), dtype=torch.float64)
        slopes = scale.new_zeros(2, len(x), dtype=torch.float64)
        gradient = scale.new_zeros(x.shape) if ctx.needs_input_grad[0] else None
        travelling = {0: key} if s.key_ids is None else {0: key, 1: s.key_ids}
        for rank, theirs in s.exchange.rounds(travelling, [[m, m] for _, m in s.counts]):
            ids = s.positives(rank == s.exchange.rank, s.query_ids, theirs.get(1), x, theirs[0])
            loss, slope, part = block_losses(x, theirs[0], *numbers, *ids, gradient is not None, s.impl)
            losses += loss
            slopes += slope
            if gradient is not None:
                gradient += part
        ctx.settings = s
        ctx.save_for_backward(query, key, scale, bias, slopes, gradient)
        return losses.to(scale.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s: _Settings = ctx.settings
        query, key, scale, bias, slopes, gradient = ctx.saved_tensors
        dquery = None if gradient is None else (grad[:, None] * gradient).to(query.dtype)
        dscale, dbias = (slopes * grad).sum(1).to(scale.dtype)
        dkey = None
        if ctx.needs_input_grad[1]:
            y, dkey = key.detach(), scale.new_zeros(key.shape)
            travelling = {0: query.detach(), 1: grad}
            if s.query_ids is not None:
                travelling[2] = s.query_ids
            for rank, theirs in s.exchange.rounds(travelling, [[n, n, n] for n, _ in s.counts]):
                ids = s.positives(rank == s.exchange.rank, theirs.get(2), s.key_ids, theirs[0], y)
                dkey += block_key_gradient(theirs[1], theirs[0], y, scale, bias, *ids, s.impl)
            dkey = dkey.to(key.dtype)
        return dquery, dkey, dscale, dbias, None
