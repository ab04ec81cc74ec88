"""The supervised contrastive formula for positives and candidates that no labels describe."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_losses(similarity: Tensor, temperature: float, weight: Tensor, candidates: Tensor) -> Tensor:
    """Dense losses (N,): each row's weighted mean of its positives' negative log-probability among its candidates.

    similarity (N, M); weight (N, M) of the positives, any numbers; candidates (N, M) bool, the positives among them. A
    row whose weights sum to 0 has the plain sum, as in the authors' code: 0 where it has no positive.
    """
    logits = similarity.to(torch.promote_types(similarity.dtype, torch.float32)) / temperature
    weight = weight.to(logits.dtype)
    log_sum = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    total = weight.sum(1)
    return (weight * (log_sum - logits)).sum(1) / torch.where(total.abs() < 1e-6, 1, total)


def reduce_losses(losses: Tensor, reduction: str) -> Tensor:
    """Losses (anchors,) by "mean", "mean_nonzero" (over those above 0), "sum" or "none"."""
    if reduction == "mean":
        return losses.mean()
    if reduction == "mean_nonzero":
        # "not <= 0", so that NaN counts and shows.
        return losses.sum() / (~(losses <= 0)).sum().clamp(min=1)
    return losses.sum() if reduction == "sum" else losses
