"""One block of a softmax in plain PyTorch: its similarities in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast.reference.info_nce import similarity_matrix


def _left_out(n: int, m: int, excluded: Tensor | None, itself: bool, device: torch.device) -> Tensor:
    """(n, m) bool: entries that no softmax sees."""
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
    """The same function as :func:`cmx_fast.ops.softmax_block.block_statistics`."""
    columns = x if y is None else y
    u = similarity_matrix(x, columns, similarity).to(logit_scale.dtype)
    out = _left_out(len(x), len(columns), excluded, y is None, x.device)
    seen = u.masked_fill(out, float("-inf"))
    top = seen.amax(1) if len(columns) else u.new_full((len(x),), float("-inf"))
    weights = torch.exp(logit_scale * (seen - torch.where(top == float("-inf"), 0.0, top)[:, None]))
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
    """The same function as :func:`cmx_fast.ops.softmax_block.block_gradients`."""
    wide = logit_scale.dtype
    rows = x.detach().to(wide).requires_grad_()
    columns = rows if y is None else y.detach().to(wide).requires_grad_()
    with torch.enable_grad():
        u = similarity_matrix(rows, columns, similarity)
    top, weight, share = row_softmax[:, :, None]
    slope = weight * torch.exp(logit_scale * (u.detach() - top)) - share
    # Without y autograd itself adds a similarity's gradient as a row and as a column.
    if column_softmax is not None:
        top, weight, share = column_softmax[:, None]
        slope = slope + weight * torch.exp(logit_scale * (u.detach() - top)) - share
    out = _left_out(len(x), len(columns), excluded, y is None, x.device)
    slope = (logit_scale * slope).masked_fill(out, 0.0)
    wanted = [tensor for tensor, needed in ((rows, need_x), (columns, need_y)) if needed]
    found = iter(torch.autograd.grad(u, wanted, slope)) if wanted else iter(())
    empty = logit_scale.new_empty(0)
    return next(found) if need_x else empty, next(found) if need_y else empty
