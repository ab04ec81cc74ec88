"""One block of a softmax in plain PyTorch: its similarities in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast.reference.info_nce import similarity_matrix


def _left_out(n: int, m: int, excluded: Tensor | None, itself: bool, device: torch.device) -> Tensor:
    """Mask (n, m) of the entries that no softmax sees."""
    out = torch.zeros(n, m, dtype=torch.bool, device=device)
    if itself:
        out.fill_diagonal_(True)
    if excluded is not None:
        out |= excluded[:, None] == torch.arange(m, device=device)
    return out


def block_statistics(
    x: Tensor,
    y: Tensor | None,
    logit_scale: Tensor,
    *,
    excluded: Tensor | None = None,
    similarity: str = "dot",
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.softmax_block.block_statistics`. Memory: O(N M)."""
    columns = x if y is None else y
    u = similarity_matrix(x, columns, similarity).to(logit_scale.dtype)
    out = _left_out(x.shape[0], columns.shape[0], excluded, y is None, x.device)
    candidates = u.masked_fill(out, float("-inf"))
    top = candidates.amax(1) if columns.shape[0] else u.new_full((x.shape[0],), float("-inf"))
    weights = torch.exp(logit_scale * (candidates - torch.where(top == float("-inf"), 0.0, top)[:, None]))
    total = weights.sum(1)
    u = u.masked_fill(out, 0.0)
    mean = (weights * u).sum(1) / torch.where(total == 0, 1.0, total)
    return torch.stack([top, total.log(), mean, u.sum(1)])


def block_gradients(
    x: Tensor,
    y: Tensor | None,
    logit_scale: Tensor,
    row_softmax: Tensor,
    column_softmax: Tensor | None = None,
    *,
    excluded: Tensor | None = None,
    similarity: str = "dot",
    need_x: bool = True,
    need_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same function as :func:`cmx_fast.ops.softmax_block.block_gradients`. Memory: O(N M)."""
    rows = x.to(logit_scale.dtype)
    # Without y autograd itself adds a similarity's gradient as a row and as a column.
    sides = (rows,) if y is None else (rows, y.to(logit_scale.dtype))
    u, pull = torch.func.vjp(  # type: ignore[misc]
        lambda *both: similarity_matrix(both[0], both[-1], similarity), *sides
    )
    top, weight, share = row_softmax[:, :, None]
    slope = weight * torch.exp(logit_scale * (u - top)) - share
    if column_softmax is not None:
        top, weight, share = column_softmax[:, None]
        slope = slope + weight * torch.exp(logit_scale * (u - top)) - share
    out = _left_out(x.shape[0], sides[-1].shape[0], excluded, y is None, x.device)
    gradients = pull((logit_scale * slope).masked_fill(out, 0.0))
    empty = logit_scale.new_empty(0)
    return gradients[0] if need_x else empty, gradients[1] if need_y else empty
