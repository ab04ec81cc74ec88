"""InfoNCE in plain PyTorch: the formula as it is written down, with the N x M matrix in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.reference.transforms import transformed


def similarity_matrix(x: Tensor, y: Tensor, similarity: str) -> Tensor:
    """Similarities (*, N, M) of (*, N, D) and (*, M, D): ``x @ y.T``, ``-||x - y||`` or ``-||x - y||**2``."""
    if similarity == "dot":
        return x @ y.transpose(-1, -2)
    # torch.cdist has no half-precision CPU kernel.
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(wide), y.to(wide)
    if transformed():
        # Nor has it tangents or second derivatives. Memory for (*, N, M, D).
        squares = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
        if similarity == "sql2":
            return -squares
        # A distance of 0 has the gradient 0, as in torch.cdist.
        return -torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())
    distance = torch.cdist(x, y)
    return -distance if similarity == "l2" else -distance.square()


def _without_diagonal(square: Tensor) -> Tensor:
    """Rows (*, N, N - 1) of a (*, N, N) matrix, each without its own column."""
    n = square.shape[-1]
    others = ~torch.eye(n, dtype=torch.bool, device=square.device)
    return square[..., others].unflatten(-1, (n, max(n - 1, 0)))


def _direction(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    bank: Sequence[Tensor],
    target: Tensor,
    in_batch: bool,
    within: bool,
    similarity: str,
    label_smoothing: float,
) -> Tensor:
    """Per-query loss (*, N) of finding ``key[target]`` among the candidates."""
    if in_batch:
        blocks = [similarity_matrix(query, key, similarity)]
        position = target
    else:
        own = key.gather(-2, target.unsqueeze(-1).expand(*target.shape, key.shape[-1]))
        blocks = [similarity_matrix(query.unsqueeze(-2), own.unsqueeze(-2), similarity).squeeze(-1)]
        position = torch.zeros_like(target)
    blocks += [similarity_matrix(query, rows, similarity) for rows in bank]
    if within:
        blocks.append(_without_diagonal(similarity_matrix(query, query, similarity)))
    logits = scale * torch.cat(blocks, dim=-1)
    # Softmax in float32 or better whatever the dtype of the products.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(
        logits.flatten(0, -2), position.flatten(), label_smoothing=label_smoothing, reduction="none"
    )
    return loss.unflatten(0, target.shape)


def info_nce(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = 1 / 0.07,
    *,
    bank: Tensor | Sequence[Tensor] = (),
    in_batch: bool = True,
    within: bool = False,
    similarity: str = "dot",
    target: Tensor | None = None,
    symmetric: bool = True,
    normalize: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.info_nce`, one softmax cross-entropy over concatenated logits.

    Products in the inputs' dtype, the softmax in float32 or better. Memory: the logits, (*, N, candidates), several
    times.
    """
    if normalize:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    bank = [bank.detach()] if isinstance(bank, Tensor) else [rows.detach() for rows in bank]
    if target is None:
        target = torch.arange(query.shape[-2], device=query.device).expand(query.shape[:-1])
    options = (in_batch, within, similarity, label_smoothing)
    loss = _direction(query, key, logit_scale, bank, target, *options)
    if symmetric:
        # The inverse permutation: the query that each key belongs to.
        loss_of_key = _direction(key, query, logit_scale, bank, target.argsort(-1), *options)
        loss = (loss + loss_of_key.gather(-1, target)) / 2
    return reduce_loss(loss, reduction)


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Apply ``"mean"``, ``"sum"``, ``"none"`` or ``"mean_nonzero"`` (the mean over losses above zero, else 0)."""
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean_nonzero":
        # "not <= 0" rather than "> 0": a NaN must stay visible in the mean.
        return loss.sum() / (~(loss <= 0)).sum().clamp_min(1)
    return loss
