"""InfoNCE over dense scores in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.reference.dense_scores import dense_scores
from cmx_fast.reference.info_nce import reduce_loss


def contrast_scores(
    scores: Tensor, logit_scale: Tensor | float, target: Tensor | None, symmetric: bool, reduction: str
) -> Tensor:
    """InfoNCE over the scores (B, M) of queries and keys, of which ``target`` (B,) is each query's own."""
    logits = logit_scale * scores
    if target is None:
        target = torch.arange(scores.shape[0], device=scores.device)
    loss = F.cross_entropy(logits, target, reduction="none")
    if symmetric:
        # The inverse permutation: the query that each key belongs to.
        of_keys = F.cross_entropy(logits.T, target.argsort(), reduction="none")
        loss = (loss + of_keys.gather(0, target)) / 2
    return reduce_loss(loss, reduction)


def dense_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = 1 / 0.07,
    *,
    pool: str = "max_mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: int = 1,
    target: Tensor | None = None,
    symmetric: bool = True,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.dense_contrastive`. Memory: that of the reference's dense scores."""
    scores = dense_scores(
        query,
        key,
        pool=pool,
        query_mask=query_mask,
        key_mask=key_mask,
        heads=heads,
        normalize=normalize,
    )
    return contrast_scores(scores, logit_scale, target, symmetric, reduction)
