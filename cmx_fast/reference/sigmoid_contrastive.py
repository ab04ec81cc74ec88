"""Sigmoid contrastive loss in plain PyTorch: the formula as it is written down, with the N x M matrix in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.reference.info_nce import reduce_loss


def sigmoid_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = 10.0,
    logit_bias: Tensor | float = -10.0,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.sigmoid_contrastive`, with the logits and the positives' mask in memory.

    Products in the inputs' dtype, the logarithms of sigmoids in float32 or better.
    """
    if normalize:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    if query_ids is None or key_ids is None:
        query_ids = torch.arange(query.shape[-2], device=query.device)
        key_ids = torch.arange(key.shape[-2], device=query.device)
    similarities = query @ key.transpose(-1, -2)
    logits = logit_scale * similarities + logit_bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positive = query_ids.unsqueeze(-1) == key_ids.unsqueeze(-2)
    # 0 times an infinity is NaN: it stays visible where the sigmoid swallowed it.
    losses = -F.logsigmoid(torch.where(positive, logits, -logits)) + 0 * similarities
    return reduce_loss(losses.sum(-1), reduction)
