"""Dense scores on the GPU: launchers of the forward and the backward pass.

kernels/dense_scores/maxima.py has the forward kernel, kernels/dense_scores/gradients.py the backward ones: one launch
forward, one backward per gradient. Tokens that are to be normalised are copied first, in their own dtype, as PyTorch
does it. Places that were not kept are found again, as many query items at a time as fit PLACE_BYTES; the key's gradient
is then summed in float32 from one group of query items to the next.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmx_fast.kernels.common.arguments import check_dtype, on_own_device, without_autocast
from cmx_fast.kernels.common.grids import ceil_div, next_power_of_2
from cmx_fast.kernels.common.tiles import INTERPRETED, architecture, dot_precision, upcast
from cmx_fast.kernels.dense_scores.gradients import (
    dense_scores_key_gradient_kernel,
    dense_scores_pair_gradient_kernel,
    dense_scores_query_gradient_kernel,
)
from cmx_fast.kernels.dense_scores.maxima import dense_scores_forward_kernel

__all__ = ["dense_scores_bwd", "dense_scores_fwd"]

PLACE_BYTES = 64 << 20


class DenseTile(NamedTuple):
    """A program's tile: ``rows`` places x ``cols`` tokens, ``depth`` features of a product at a time or ``out`` of a
    gradient."""

    rows: int
    cols: int
    depth: int
    out: int
    warps: int
    stages: int


# By architecture and whether an element takes two bytes; "sm80" also serves what has no entry of its own.
TILES = {
    ("sm80", True): DenseTile(64, 64, 64, 64, 4, 2),
    ("sm80", False): DenseTile(32, 32, 16, 32, 4, 2),
    ("sm100", True): DenseTile(128, 32, 64, 64, 8, 2),
    ("sm100", False): DenseTile(64, 32, 16, 32, 4, 2),
}


def _tile(x: Tensor, width: int) -> DenseTile:
    """The table's tile for this device and dtype, no wider than the features of a head."""
    if INTERPRETED:
        tile = DenseTile(64, 64, 64, 64, 4, 1)
    else:
        halves, arch = x.dtype != torch.float32, architecture(x.device)
        tile = TILES.get((arch, halves), TILES["sm80", halves])
    padded = max(16, next_power_of_2(width))
    return tile._replace(depth=min(tile.depth, padded), out=min(tile.out, padded))


def _place_dtype(places: int) -> torch.dtype:
    """The smallest integers that number this many places."""
    return torch.uint8 if places <= 256 else torch.int16 if places <= 32768 else torch.int32


class _Side(NamedTuple):
    """One side's tokens (items, tokens, D) as they are multiplied, their mask, and what they were multiplied by."""

    x: Tensor
    mask: Tensor | None
    inverse_norm: Tensor | None

    @property
    def strides(self) -> tuple[int, ...]:
        return self.x.stride()

    def gradient(self, gradient: Tensor, like: Tensor) -> Tensor:
        """From the gradient by the tokens as they are multiplied to that by the input ``like``."""
        if self.inverse_norm is not None:
            unit = self.x.float()
            # A norm below the floor is a constant: nothing to project out.
            along = torch.where(self.inverse_norm < 1e12, (gradient * unit).sum(-1, keepdim=True), 0.0)
            gradient = (gradient - unit * along) * self.inverse_norm
        if gradient.dtype == like.dtype:
            return gradient
        return torch.empty_like(like).copy_(gradient)


def _side(x: Tensor, mask: Tensor | None, normalize: bool) -> _Side:
    """The tokens, divided by max(norm, 1e-12) in a copy where asked for."""
    if mask is not None:
        mask = mask.contiguous()
    if not normalize:
        return _Side(x, mask, None)
    wide = x.float()
    if mask is not None:
        wide = wide.masked_fill(~mask[..., None], 0)
    # By a power of two nothing rounds, and no square of the largest number overflows or vanishes.
    exponent = torch.frexp(wide.abs().amax(-1, keepdim=True)).exponent.clamp(-120, 120)
    factor = torch.exp2(-exponent.float())
    scaled = wide * factor
    norm = torch.maximum(scaled.norm(dim=-1, keepdim=True), 1e-12 * factor)
    return _Side((scaled / norm).to(x.dtype), mask, factor / norm)


def _forward(
    query: _Side,
    key: _Side,
    scores: Tensor | None,
    place: Tensor | None,
    token: Tensor | None,
    pool: str,
    heads: int,
) -> None:
    (b, p, d), (m, t, _) = query.x.shape, key.x.shape
    tile = _tile(query.x, d // heads)
    dense_scores_forward_kernel[(b * m,)](
        query.x, key.x, query.mask, key.mask, scores, place, token, m, p, t, *query.strides, *key.strides, heads,
        d // heads, MEAN=pool == "mean", MAXIMUM=pool == "max", ROWS=tile.rows, COLS=tile.cols, DEPTH=tile.depth,
        PRECISION=dot_precision(query.x), UPCAST=upcast(query.x), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@on_own_device
@without_autocast
def dense_scores_fwd(
    query: Tensor,
    key: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    pool: str,
    heads: int,
    normalize: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``cmx_fast::dense_scores_fwd`` for CUDA.

    Args:
        query: (B, P, D), key: (M, T, D), with any strides, of one dtype: float32, bfloat16 or float16.

    Returns:
        scores (B, M) float32; where ``keep``, the places of the maxima (B, M, T), or with ``pool="max"`` (B, M, 1), and
        then their tokens (B, M) int32; else (0,).
    """
    check_dtype(query)
    (b, p, _), (m, t, _) = query.shape, key.shape
    scores = query.new_empty(b, m, dtype=torch.float32)
    maximum = pool == "max"
    place = query.new_empty(0, dtype=torch.int32)
    if keep:
        place = query.new_empty(b, m, 1 if maximum else t, dtype=_place_dtype(p * heads))
    token = query.new_empty((b, m) if keep and maximum else (0,), dtype=torch.int32)
    if b * m:
        sides = _side(query, query_mask, normalize), _side(key, key_mask, normalize)
        _forward(*sides, scores, place if keep else None, token if keep else None, pool, heads)
    return scores, place, token


@on_own_device
@without_autocast
def dense_scores_bwd(
    grad_scores: Tensor,
    query: Tensor,
    key: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    place: Tensor,
    token: Tensor,
    pool: str,
    heads: int,
    normalize: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    """The operator ``cmx_fast::dense_scores_bwd`` for CUDA: dquery and dkey like the inputs, (0,) if not needed."""
    needed = need_query, need_key
    if query.shape[0] * key.shape[0] == 0:
        empty = [
            torch.zeros_like(x) if wanted else x.new_empty(0)
            for x, wanted in zip((query, key), needed, strict=True)
        ]
        return empty[0], empty[1]
    sides = _side(query, query_mask, normalize), _side(key, key_mask, normalize)
    grad_scores = _slopes(grad_scores, query_mask, key_mask)
    items, keys, tokens = query.shape[0], key.shape[0], 1 if pool == "max" else key.shape[1]
    step = items
    if place.numel() == 0:
        dtype = _place_dtype(query.shape[1] * heads)
        step = min(items, max(1, PLACE_BYTES // (keys * tokens * dtype.itemsize)))
    # Summed over groups of query items, and projected where tokens were normalised, in float32.
    dquery, dkey = (
        torch.empty_like(x, dtype=torch.float32 if normalize or (step < items and x is key) else x.dtype)
        if wanted
        else None
        for x, wanted in zip((query, key), needed, strict=True)
    )
    for begin in range(0, items, step):
        part = slice(begin, begin + step)
        own = _Side(sides[0].x[part], None if query_mask is None else sides[0].mask[part], None)
        found = place[part], token[part]
        if place.numel() == 0:
            pairs = len(own.x), keys
            found = (
                query.new_empty(*pairs, tokens, dtype=dtype),
                query.new_empty(pairs if pool == "max" else (0,), dtype=torch.int32),
            )
            _forward(own, sides[1], None, *found, pool, heads)
        _gradients(
            grad_scores[part], own, sides[1], *found, pool, heads,
            None if dquery is None else dquery[part], dkey, add=begin > 0,
        )  # fmt: skip
    results = [
        x.new_empty(0) if gradient is None else side.gradient(gradient, x)
        for x, side, gradient in zip((query, key), sides, (dquery, dkey), strict=True)
    ]
    return results[0], results[1]


def _slopes(grad_scores: Tensor, query_mask: Tensor | None, key_mask: Tensor | None) -> Tensor:
    """The upstream gradient (B, M), 0 where an item has no real token and the score is no function of any."""
    if query_mask is not None:
        grad_scores = grad_scores.masked_fill(~query_mask.any(1)[:, None], 0)
    if key_mask is not None:
        grad_scores = grad_scores.masked_fill(~key_mask.any(1), 0)
    return grad_scores.contiguous()


def _gradients(
    grad: Tensor,
    query: _Side,
    key: _Side,
    place: Tensor,
    token: Tensor,
    pool: str,
    heads: int,
    dquery: Tensor | None,
    dkey: Tensor | None,
    add: bool,
) -> None:
    """Both gradients by one group of query items, dkey added to what is there already."""
    (b, p, d), (m, t, _) = query.x.shape, key.x.shape
    head = d // heads
    tile = _tile(query.x, head)
    wide = min(tile.out, next_power_of_2(d))
    launch: dict[str, Any] = {"num_warps": tile.warps, "num_stages": tile.stages}
    if pool == "max":
        if dquery is not None:
            dense_scores_pair_gradient_kernel[(b * ceil_div(p, tile.rows) * ceil_div(d, wide),)](
                grad, place, token, key.x, dquery, m, p, d, m, 1, *key.strides, *dquery.stride(), heads, head,
                OWN_PLACES=True, ADD=False, ROWS=tile.rows, OUT=wide, **launch,
            )  # fmt: skip
        if dkey is not None:
            dense_scores_pair_gradient_kernel[(m * ceil_div(t, tile.rows) * ceil_div(d, wide),)](
                grad, token, place, query.x, dkey, b, t, d, 1, m, *query.strides, *dkey.stride(), heads, head,
                OWN_PLACES=False, ADD=add, ROWS=tile.rows, OUT=wide, **launch,
            )  # fmt: skip
        return
    if dquery is not None:
        programs = b * ceil_div(p, tile.rows) * heads * ceil_div(head, tile.out)
        dense_scores_query_gradient_kernel[(programs,)](
            grad, key.x, key.mask, place, dquery, m, p, t, *key.strides, *dquery.stride(), heads, head,
            MEAN=pool == "mean", ROWS=tile.rows, COLS=tile.cols, OUT=tile.out, UPCAST=upcast(key.x), **launch,
        )  # fmt: skip
    if dkey is not None:
        dense_scores_key_gradient_kernel[(m * ceil_div(t, tile.rows) * ceil_div(d, wide),)](
            grad, query.x, key.mask, place, dkey, b, m, t, d, *query.strides, *dkey.stride(), heads, head,
            MEAN=pool == "mean", ADD=add, ROWS=tile.rows, OUT=wide, **launch,
        )  # fmt: skip
