"""Dense scores in plain PyTorch: every token of every item against every other item's in memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: The pools over the query's tokens and over the key's, by the pool's name.
POOLS = {
    "max_mean": ("max", "mean"),
    "max_sum": ("max", "sum"),
    "mean_max": ("mean", "max"),
    "sum_max": ("sum", "max"),
    "max": ("max", "max"),
    "mean": ("mean", "mean"),
}


def token_rows(x: Tensor) -> Tensor:
    """Tokens (B, P, D) as they are, and maps (B, D, *S) as the tokens of their places, without a copy."""
    return x if x.dim() == 3 else x.flatten(2).transpose(1, 2)


def dense_scores(
    query: Tensor,
    key: Tensor,
    *,
    pool: str = "max_mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: int = 1,
    normalize: bool = False,
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.dense_scores`.

    Products in the inputs' dtype, pooled in float32 or better. Memory: the similarities of all tokens,
    (B, M, heads, P, T), several times.
    """
    query, key = token_rows(query), token_rows(key)
    # Before any product: what stands in a padded token then shows in no gradient, either.
    if query_mask is not None:
        query = query.masked_fill(~query_mask[..., None], 0)
    if key_mask is not None:
        key = key.masked_fill(~key_mask[..., None], 0)
    if normalize:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    parts = [x.unflatten(-1, (heads, x.shape[-1] // heads)) for x in (query, key)]
    similarities = torch.einsum("bphd,mthd->bmhpt", *parts).max(2).values
    similarities = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
    over_places, over_tokens = POOLS[pool]
    places = None if query_mask is None else query_mask[:, None, :, None]
    tokens = None if key_mask is None else key_mask[None, :, None, :]
    sides = [(2, over_places, places), (3, over_tokens, tokens)]
    # A maximum is taken of the similarities themselves.
    for dim, over, mask in sides if over_places == "max" else sides[::-1]:
        similarities = _pooled(similarities, dim, over, mask)
    scores = similarities[:, :, 0, 0]
    if query_mask is not None:
        scores = scores.masked_fill(~query_mask.any(1)[:, None], math.nan)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask.any(1), math.nan)
    return scores


def _pooled(x: Tensor, dim: int, over: str, mask: Tensor | None) -> Tensor:
    """The maximum, mean or sum over the real tokens of one side, which stays as a dimension of size 1."""
    if over == "max":
        return (x if mask is None else x.masked_fill(~mask, -math.inf)).max(dim, keepdim=True).values
    if mask is None:
        return x.mean(dim, keepdim=True) if over == "mean" else x.sum(dim, keepdim=True)
    total = x.masked_fill(~mask, 0).sum(dim, keepdim=True)
    return total / mask.sum(dim, keepdim=True).clamp_min(1) if over == "mean" else total
