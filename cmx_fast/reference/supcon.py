"""Supervised contrastive loss in plain PyTorch: the formula as it is written down, with M x M masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmx_fast.reference.info_nce import reduce_loss


def supcon(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float = 1 / 0.07,
    *,
    ref_features: Tensor | None = None,
    ref_labels: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """The same function as :func:`cmx_fast.ops.supcon`, with the similarity matrix and both masks in memory."""
    columns = features if ref_features is None else ref_features
    column_labels = labels if ref_labels is None else ref_labels
    if normalize:
        features, columns = F.normalize(features, dim=-1), F.normalize(columns, dim=-1)
    logits = logit_scale * (features @ columns.T)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positive = labels[:, None] == column_labels[None, :]
    if ref_features is None:
        itself = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
        positive = positive & ~itself
        # The lowest finite number, not -inf: a batch of one row then has a zero gradient instead of NaN.
        logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    # Not logits less their log-sum-exp: where they are large, that has no digits left for the logarithm.
    log_probability = logits.log_softmax(dim=1)
    count = positive.sum(1)
    mean_of_positives = log_probability.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    # NaN times 0 is NaN: a row without positives keeps visible what is not finite.
    loss = torch.where(count > 0, -mean_of_positives, (0 * logits).sum(1))
    return reduce_loss(loss, reduction)
