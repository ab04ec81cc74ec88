"""InfoNCE over dense scores whose candidates are the items of all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cmx_fast import ops
from cmx_fast.distributed.exchange import Exchange, own_rows, whole_batch
from cmx_fast.distributed.info_nce import info_nce
from cmx_fast.ops import _checks
from cmx_fast.ops._cache import fits
from cmx_fast.ops._implementations import choose
from cmx_fast.ops.dense_scores import POOLS, check_arguments, mean_tokens, place_dtype
from cmx_fast.ops.info_nce import REDUCTIONS, check_target


@torch.compiler.disable
def dense_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
    *,
    group: dist.ProcessGroup | None = None,
    exchange: str = "ring",
    averaged: bool = True,
    pool: str = "max_mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: int = 1,
    target: Tensor | None = None,
    symmetric: bool = True,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    """:func:`cmx_fast.ops.dense_contrastive` of the batch that all processes hold together.

    A query's positive is a key of its own process; all keys of the group are its negatives. Every process must call it,
    with the same options.

    Args:
        query: (B, P, D) or (B, D, *S), key: (M, T, D) or (M, D, *S); B, M, P and T may differ between processes, and B
            and M be 0. Where P or T differ, tokens are padded to the longest.
        group, exchange, averaged: as in :func:`cmx_fast.distributed.info_nce`.
        target: (B,) int64, items of this process's ``key``. The other options are the operator's.

    Returns:
        The loss of the whole batch, the same in every process; with ``reduction="none"`` the (B,) losses of this
        process's queries. The gradient of ``logit_scale`` is this process's share, too.

    Raises:
        TypeError, ValueError: as the operator, and an unknown exchange. An error in one process leaves the others
            waiting, as with every collective. NotImplementedError: second derivatives.

    Memory: as the operator, the scores of the whole batch, and with "ring" the tokens of two processes, with "gather"
    of all. Cost of a process: the scores of its queries with all keys forward; backward those of its keys with all
    queries, since no gradient travels, and again the first where their places did not fit
    :func:`cmx_fast.ops.cache_budget`. One wait for the device (the lengths).
    """
    _checks.check_flags(symmetric=symmetric, averaged=averaged)
    _checks.check_choice("reduction", reduction, REDUCTIONS)
    query, key, query_mask, key_mask = check_arguments(
        query, key, pool, query_mask, key_mask, heads, normalize
    )
    scale = _checks.scale_tensor(logit_scale, query, temperature)
    check_target(query.shape[:1], key.shape[0], target, symmetric, query.device)
    together = Exchange(group, exchange)
    if together.size == 1:
        return ops.dense_contrastive(
            query, key, scale, pool=pool, query_mask=query_mask, key_mask=key_mask, heads=heads, target=target,
            symmetric=symmetric, normalize=normalize, reduction=reduction, impl=impl,
        )  # fmt: skip
    if pool == "mean":
        # The score of two items is the product of their means; autocast would round these.
        with torch.autocast(query.device.type, enabled=False):
            means = mean_tokens(query, query_mask, normalize), mean_tokens(key, key_mask, normalize)
            return info_nce(
                *means, scale, group=group, exchange=exchange, averaged=averaged, target=target, symmetric=symmetric,
                reduction=reduction, impl=impl,
            )  # fmt: skip
    counts = together.counts(query, key, query.transpose(0, 1), key.transpose(0, 1))
    places, tokens = (max(count[side] for count in counts) for side in (2, 3))
    query, query_mask = _padded(query, query_mask, places, any(count[2] < places for count in counts))
    key, key_mask = _padded(key, key_mask, tokens, any(count[3] < tokens for count in counts))
    impl = choose("dense_scores", impl, query.device.type, query.dtype, query.shape[-1])
    settings = _Settings(together, [count[:2] for count in counts], pool, heads, normalize, impl)
    scores = _Scores.apply(query, key, query_mask, key_mask, settings)
    first_query, first_key = (sum(count[side] for count in counts[: together.rank]) for side in (0, 1))
    own = torch.arange(len(query), device=query.device)
    positive = (own if target is None else target) + first_key
    logits = scale * scores
    losses = F.cross_entropy(logits[first_query : first_query + len(query)], positive, reduction="none")
    if symmetric:
        of_keys = F.cross_entropy(logits.T[positive], own + first_query, reduction="none")
        losses = (losses + of_keys) / 2
    if reduction == "none":
        return own_rows(losses, together, averaged)
    return whole_batch(losses.sum() / (len(scores) if reduction == "mean" else 1), together, averaged)


def _padded(x: Tensor, mask: Tensor | None, tokens: int, differ: bool) -> tuple[Tensor, Tensor | None]:
    """Tokens padded to this many, and the mask, which all processes have where one pads."""
    if not differ:
        return x, mask
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    missing = tokens - x.shape[1]
    return F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))


@dataclass(frozen=True)
class _Settings:
    exchange: Exchange
    counts: list[list[int]]  # query and key items of every process
    pool: str
    heads: int
    normalize: bool
    impl: str


class _Scores(torch.autograd.Function):
    """The scores of the whole batch, in every process; backward, of the gradients of all of them by it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, query_mask: Tensor | None, key_mask: Tensor | None, s: _Settings
    ) -> Tensor:
        sides = _Sides(query, key, query_mask, key_mask, s)
        keep = sides.keeps(ctx.needs_input_grad[:2])
        columns, ctx.kept = {}, {}
        for rank, (theirs, mask) in sides.others(1):
            columns[rank], ctx.kept[rank] = sides.scores((query, query_mask), (theirs, mask), keep)
        own = torch.cat([columns[rank] for rank in range(s.exchange.size)], 1)
        rows = dict(Exchange(s.exchange.group, "gather").rounds({0: own}, s.counts))
        ctx.settings = s
        ctx.save_for_backward(query, key, query_mask, key_mask)
        return torch.cat([rows[rank][0] for rank in range(s.exchange.size)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        s: _Settings = ctx.settings
        query, key, query_mask, key_mask = ctx.saved_tensors
        sides = _Sides(query, key, query_mask, key_mask, s)
        grad = s.exchange.sum(grad)
        of_query, of_key = (grad.split([count[side] for count in s.counts], side) for side in (0, 1))
        rank = s.exchange.rank
        dquery = dkey = None
        if ctx.needs_input_grad[0]:
            dquery = torch.zeros_like(query, dtype=grad.dtype)
            for other, theirs in sides.others(1):
                slopes = of_key[other][sides.rows(0)]
                own = query, query_mask
                dquery += sides.gradients(slopes, own, theirs, ctx.kept[other], (True, False))[0]
            dquery = dquery.to(query.dtype)
        if ctx.needs_input_grad[1]:
            dkey = torch.zeros_like(key, dtype=grad.dtype)
            for other, theirs in sides.others(0):
                slopes = of_query[other][:, sides.rows(1)]
                kept = ctx.kept[rank] if other == rank else ()
                dkey += sides.gradients(slopes, theirs, (key, key_mask), kept, (False, True))[1]
            dkey = dkey.to(key.dtype)
        return dquery, dkey, None, None, None


#: One side's tokens, and which of them are real.
_Tokens = tuple[Tensor, Tensor | None]


class _Sides:
    """Queries and keys of this process, and the walk over those of the others."""

    def __init__(
        self, query: Tensor, key: Tensor, query_mask: Tensor | None, key_mask: Tensor | None, s: _Settings
    ):
        self.own: tuple[_Tokens, _Tokens] = (query.detach(), query_mask), (key.detach(), key_mask)
        self.s = s

    def rows(self, side: int) -> slice:
        """This process's items among those of all."""
        before = [count[side] for count in self.s.counts]
        begin = sum(before[: self.s.exchange.rank])
        return slice(begin, begin + before[self.s.exchange.rank])

    def others(self, side: int) -> Iterator[tuple[int, _Tokens]]:
        """Every process's tokens of a side, the own ones first."""
        x, mask = self.own[side]
        travelling = {side: x} | ({} if mask is None else {2 + side: mask.byte()})
        for rank, theirs in self.s.exchange.rounds(travelling, [[*count, *count] for count in self.s.counts]):
            yield rank, (theirs[side], None if mask is None else theirs[2 + side].bool())

    def keeps(self, needed: Sequence[bool]) -> bool:
        """True if the places of all maxima of this process's queries fit the budget, and a gradient asks for them."""
        (query, _), (key, _) = self.own
        m = sum(count[1] for count in self.s.counts)
        if POOLS[self.s.pool][0] == "max":
            size = key.shape[1] * place_dtype(query.shape[1] * self.s.heads).itemsize
        else:
            size = query.shape[1] * place_dtype(key.shape[1] * self.s.heads).itemsize
        return any(needed) and fits(query.shape[0] * m * size)

    def _arguments(self, query: _Tokens, key: _Tokens) -> tuple[tuple[Any, ...], tuple[Any, ...], bool]:
        """Tensors and options of the registered ops, and whether they have the sides the other way round."""
        s = self.s
        over_places, over_tokens = POOLS[s.pool]
        back = over_places != "max"
        first, second = (key, query) if back else (query, key)
        options = (over_places if back else over_tokens, s.heads, s.normalize)
        return (first[0], second[0], first[1], second[1]), options, back

    def scores(self, query: _Tokens, key: _Tokens, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The scores of a block, and the places of its maxima."""
        if self.s.impl == "reference":
            return self._reference(query, key), ()
        tensors, options, back = self._arguments(query, key)
        scores, *kept = torch.ops.cmx_fast.dense_scores_fwd(*tensors, *options, keep)
        return scores.T if back else scores, tuple(kept) if keep else ()

    def gradients(
        self,
        slopes: Tensor,
        query: _Tokens,
        key: _Tokens,
        kept: tuple[Tensor, ...],
        needed: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        """The gradients of a block's queries and keys, of which only those needed have values."""
        if self.s.impl == "reference":
            leaves = query[0].detach().requires_grad_(needed[0]), key[0].detach().requires_grad_(needed[1])
            with torch.enable_grad():
                scores = self._reference((leaves[0], query[1]), (leaves[1], key[1]))
            scores.backward(slopes)
            of_query, of_key = (x if x.grad is None else x.grad for x in leaves)
            return of_query, of_key
        tensors, options, back = self._arguments(query, key)
        if not kept:
            kept = slopes.new_empty(0, dtype=torch.int32), slopes.new_empty(0, dtype=torch.int32)
        if back:
            slopes, needed = slopes.T, needed[::-1]
        both = torch.ops.cmx_fast.dense_scores_bwd(slopes.contiguous(), *tensors, *kept, *options, *needed)
        return both[::-1] if back else both

    def _reference(self, query: _Tokens, key: _Tokens) -> Tensor:
        return ops.dense_scores(
            query[0], key[0], pool=self.s.pool, query_mask=query[1], key_mask=key[1], heads=self.s.heads,
            normalize=self.s.normalize, impl="reference",
        )  # fmt: skip
