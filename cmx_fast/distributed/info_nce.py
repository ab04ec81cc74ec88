"""InfoNCE whose candidates are the keys of all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import ops
from cmx_fast.distributed.exchange import Exchange, chunks, own_rows, whole_batch
from cmx_fast.ops import _checks
from cmx_fast.ops.info_nce import check_arguments
from cmx_fast.ops.softmax_block import block_gradients, block_statistics, join, softmax_slopes


@torch.compiler.disable
def info_nce(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
    *,
    group: dist.ProcessGroup | None = None,
    exchange: str = "ring",
    averaged: bool = True,
    bank: Tensor | Sequence[Tensor] = (),
    in_batch: bool = True,
    within: bool = False,
    similarity: str = "dot",
    target: Tensor | None = None,
    symmetric: bool = True,
    normalize: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    """:func:`cmx_fast.ops.info_nce` of the batch that all processes hold together.

    A query's positive is a key of its own process; all keys of the group (and with ``within`` all queries) are its
    negatives. Every process must call it, with the same options.

    Args:
        query: (N, D), key: (M, D); N and M may differ between processes, and be 0.
        group: the process group, by default the default one. Without a group the result is the operator's.
        exchange: "ring": rows go from neighbour to neighbour while they are used, so memory doesn't grow with the
            number of processes. "gather": all rows at once, in fewer messages.
        averaged: True where gradients are averaged over the processes afterwards, as DistributedDataParallel and FSDP
            do. They are then multiplied by the number of processes here, so that the average is the gradient of the
            returned loss. With False each process gets its rows' gradient of that loss, and the parameters' gradients
            are to be summed.
        bank: this process's own; for the whole batch's loss it must be the same in all of them.
        target: (N,) int64, rows of this process's ``key``. The other options are the operator's.

    Returns:
        The loss of the whole batch, the same in every process; with ``reduction="none"`` the (N,) losses of this
        process's queries. The gradient of ``logit_scale`` is this process's share, too: summed, or averaged with
        ``averaged``, it is the whole.

    Raises:
        TypeError, ValueError: as the operator, and an unknown exchange. An error in one process leaves the others
            waiting, as with every collective. NotImplementedError: second derivatives.

    Memory: as the operator, and with "ring" the rows of two processes, with "gather" of all. Cost of a process: a
    product of its queries with all keys, of its keys with all queries if symmetric, and twice both backward. One wait
    for the device (the lengths).
    """
    _checks.check_flags(
        in_batch=in_batch, within=within, symmetric=symmetric, normalize=normalize, averaged=averaged
    )
    query, key, scale, bank = check_arguments(
        query, key, logit_scale, bank, similarity, reduction, label_smoothing, target, symmetric, temperature
    )
    if query.dim() != 2:
        raise ValueError(f"query must have shape (N, D) in a process group, got {tuple(query.shape)}")
    together = Exchange(group, exchange)
    if together.size == 1:
        return ops.info_nce(
            query, key, scale, bank=bank, in_batch=in_batch, within=within, similarity=similarity, target=target,
            symmetric=symmetric, normalize=normalize, label_smoothing=label_smoothing, reduction=reduction, impl=impl,
        )  # fmt: skip
    if normalize:
        query, key = (F.normalize(x.to(scale.dtype), dim=1).to(x.dtype) for x in (query, key))
    counts = together.counts(query, key)
    n, m = (sum(count[side] for count in counts) for side in (0, 1))
    settings = _Settings(
        together, counts, bank, in_batch, within, similarity, symmetric, float(label_smoothing), impl,
        1 + (m - 1) * in_batch + (n - 1) * within + sum(map(len, bank)),
    )  # fmt: skip
    if target is None:
        target = torch.arange(len(query), device=query.device)
    losses = _InfoNCE.apply(query, key, scale, target, settings)
    if reduction == "none":
        return own_rows(losses, together, averaged)
    return whole_batch(losses.sum() / (n if reduction == "mean" else 1), together, averaged)


@dataclass(frozen=True)
class _Settings:
    exchange: Exchange
    counts: list[list[int]]
    bank: tuple[Tensor, ...]
    in_batch: bool
    within: bool
    similarity: str
    symmetric: bool
    smoothing: float
    impl: str
    candidates: int


class _InfoNCE(torch.autograd.Function):
    """The losses (N,) of this process's queries.

    Positives stay out of the softmax statistics, as in the operator, so that neither loss nor gradient cancels.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, target: Tensor, s: _Settings) -> Tensor:
        blocks = _Blocks(query, key, scale, target, s)
        of_queries, of_keys = blocks.statistics()
        positive = _similarity(query, key, target, s.similarity)
        losses = scale.new_zeros(len(query), dtype=torch.float64)
        for statistics in (of_queries, of_keys)[: 1 + s.symmetric]:
            top, log_sum, mean, plain = statistics if statistics is of_queries else statistics[:, target]
            # 0 times an infinity is NaN: it stays visible where the exponential swallowed it.
            losses += F.softplus(scale * (top - positive) + log_sum) + 0 * (mean + positive)
            if s.smoothing > 0:
                losses += s.smoothing * scale * (positive - (plain + positive) / s.candidates)
        if s.symmetric:
            losses /= 2
        ctx.settings = s
        ctx.save_for_backward(query, key, scale, target, positive, of_queries, of_keys)
        return losses.to(scale.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s: _Settings = ctx.settings
        query, key, scale, target, positive, of_queries, of_keys = ctx.saved_tensors
        pull = grad.double() / (1 + s.symmetric)
        share = pull * s.smoothing / s.candidates
        dscale, toward = scale.new_zeros((), dtype=torch.float64), torch.zeros_like(pull)

        def softmax(statistics: Tensor) -> Tensor:
            """The softmax's slopes, (rows, 3); rows without a query have none."""
            nonlocal dscale, toward
            at = statistics if statistics is of_queries else statistics[:, target]
            top, log_sum, mean, plain = at
            weight = pull * torch.sigmoid(scale * (top - positive) + log_sum)
            dscale += (weight * (mean - positive)).sum()
            if s.smoothing > 0:
                dscale += (pull * s.smoothing * positive - share * (plain + positive)).sum()
            toward += pull * s.smoothing - share - weight
            own = softmax_slopes(at, weight, share, scale).T.contiguous()
            if statistics is of_queries:
                return own
            whole = scale.new_tensor([math.inf, 0, 0]).repeat(len(key), 1)
            whole[target] = own
            return whole

        softmaxes = [softmax(of_queries)] + ([softmax(of_keys)] if s.symmetric else [])
        gradients = _Blocks(query, key, scale, target, s).gradients(softmaxes, ctx.needs_input_grad[:2])
        toward = toward * scale
        if s.similarity == "sql2":
            toward = 2 * toward
        elif s.similarity == "l2":
            toward = torch.where(positive == 0, 0.0, toward / -positive)
        dquery, dkey = gradients
        away = 0 if s.similarity == "dot" else 1
        for rows in chunks(query):
            own, positive, factor = query[rows].double(), key[target[rows]].double(), toward[rows, None]
            if dquery is not None:
                dquery[rows] += factor * (positive - away * own)
            if dkey is not None:
                dkey.index_add_(0, target[rows], (factor * (own - away * positive)).to(dkey.dtype))
        dquery = None if dquery is None else dquery.to(query.dtype)
        dkey = None if dkey is None else dkey.to(key.dtype)
        return dquery, dkey, dscale.to(scale.dtype), None, None


def _similarity(query: Tensor, key: Tensor, target: Tensor, similarity: str) -> Tensor:
    """The similarities of queries and their keys, (N,) float64: a loss close to 0 is a difference of them."""
    values = query.new_empty(len(query), dtype=torch.float64)
    for rows in chunks(query):
        x, y = query[rows].double(), key[target[rows]].double()
        values[rows] = (x * y if similarity == "dot" else -(x - y).square()).sum(1)
    return -(-values).sqrt() if similarity == "l2" else values


class _Blocks:
    """The walk over all processes' rows that both passes share."""

    def __init__(self, query: Tensor, key: Tensor, scale: Tensor, target: Tensor, s: _Settings):
        self.sides, self.scale, self.target, self.s = (
            (query.detach(), key.detach()),
            scale.detach(),
            target,
            s,
        )
        self.options: dict[str, Any] = {"similarity": s.similarity, "impl": s.impl}

    def _owner(self) -> Tensor:
        """The query of which each key is the positive, else -1: a key leaves it out among the queries."""
        owner = self.target.new_full((len(self.sides[1]),), -1)
        owner[self.target] = torch.arange(len(self.target), device=self.target.device)
        return owner

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The softmax statistics of queries, and if symmetric of keys, over all negatives: (4, N), (4, M) float64."""
        s, sides = self.s, self.sides
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        asked = range(1 + s.symmetric)
        excluded = (self.target, self._owner() if s.symmetric else None)

        def add(side: int, columns: Tensor | None, left_out: Tensor | None = None) -> None:
            parts[side].append(
                block_statistics(sides[side], columns, self.scale, excluded=left_out, **self.options)
            )

        for side in asked:
            parts[side].append(self._nothing(len(sides[side])))
            for rows in s.bank:
                add(side, rows)
        met = {1 - side for side in asked if s.in_batch} | {side for side in asked if s.within}
        for rank, theirs in s.exchange.rounds({side: sides[side] for side in met}, s.counts):
            own = rank == s.exchange.rank
            for side in asked:
                if s.in_batch:
                    add(side, theirs[1 - side], excluded[side] if own else None)
                if s.within:
                    add(side, None if own else theirs[side])
        joined = [join(torch.stack(parts[side]), self.scale) for side in asked]
        return joined[0], joined[1] if s.symmetric else self._nothing(0)

    def _nothing(self, n: int) -> Tensor:
        empty = self.scale.new_zeros(4, n)
        empty[:2] = -math.inf
        return empty

    def gradients(self, softmaxes: list[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The sides' gradients (N, D), (M, D), from the softmaxes (rows, 3) of this process's sides and of others'.

        Each process finds the whole gradient of its own rows, so no gradient travels.
        """
        s, sides = self.s, self.sides
        gradients = [
            self.scale.new_zeros(x.shape) if wanted else None for x, wanted in zip(sides, needed, strict=True)
        ]

        def add(side: int, gradient: Tensor) -> None:
            mine = gradients[side]
            assert mine is not None
            mine += gradient

        for side, softmax in enumerate(softmaxes):
            for rows in s.bank if needed[side] else ():
                add(side, block_gradients(sides[side], rows, self.scale, softmax.T, **self.options)[0])
        # Each side's rows are pushed by the other side's softmax, where there is one, and by their own.
        met = {1 - side for side in (0, 1) if s.in_batch and needed[side]}
        met |= {side for side in range(len(softmaxes)) if s.within and needed[side]}
        travelling = {side: sides[side] for side in met}
        travelling |= {2 + side: softmaxes[side] for side in met if side < len(softmaxes)}
        for rank, theirs in s.exchange.rounds(travelling, [[*count, *count] for count in s.counts]):
            own = rank == s.exchange.rank
            left_out = self.target if own else None
            columns = [theirs[2 + side].T if 2 + side in theirs else None for side in (0, 1)]
            if s.in_batch and needed[0]:
                dx, _ = block_gradients(
                    sides[0],
                    theirs[1],
                    self.scale,
                    softmaxes[0].T,
                    columns[1],
                    excluded=left_out,
                    **self.options,
                )
                add(0, dx)
            if s.in_batch and needed[1]:
                of_queries = columns[0]
                assert of_queries is not None
                _, dy = block_gradients(
                    theirs[0], sides[1], self.scale, of_queries, softmaxes[1].T if s.symmetric else None,
                    excluded=left_out, need_x=False, need_y=True, **self.options,
                )  # fmt: skip
                add(1, dy)
            for side in range(len(softmaxes)) if s.within else ():
                if needed[side]:
                    other, of_other = (None, None) if own else (theirs[side], columns[side])
                    dx, _ = block_gradients(
                        sides[side], other, self.scale, softmaxes[side].T, of_other, **self.options
                    )
                    add(side, dx)
        return gradients
