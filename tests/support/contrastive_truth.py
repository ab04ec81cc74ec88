"""InfoNCE and SupCon in float64 from their definitions, with an explicit mask of candidates; gradients by autograd."""

import torch
from torch import Tensor


def pair_similarity(x: Tensor, y: Tensor, similarity: str) -> Tensor:
    """(n, m) similarities, distances from explicit differences with gradient 0 where the distance is 0."""
    if similarity == "dot":
        return x @ y.T
    squared = (x[:, None] - y[None]).square().sum(-1)
    if similarity == "sql2":
        return -squared
    zero = squared == 0
    return -torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _one_way(query, key, scale, bank, target, in_batch, within, similarity, smoothing):
    n, m = len(query), len(key)
    own = target[:, None] == torch.arange(m)
    blocks = [pair_similarity(query, key, similarity)]
    candidate = [own | in_batch]
    for rows in bank:
        blocks.append(pair_similarity(query, rows, similarity))
        candidate.append(torch.ones(n, len(rows), dtype=torch.bool))
    if within:
        blocks.append(pair_similarity(query, query, similarity))
        candidate.append(~torch.eye(n, dtype=torch.bool))
    logits, candidate = scale * torch.cat(blocks, 1), torch.cat(candidate, 1)
    log_probability = logits - logits.masked_fill(~candidate, -torch.inf).logsumexp(1, keepdim=True)
    positive = log_probability.gather(1, target[:, None])[:, 0]
    mean = log_probability.masked_fill(~candidate, 0).sum(1) / candidate.sum(1)
    return -(1 - smoothing) * positive - smoothing * mean


def info_nce_truth(
    query, key, scale, bank, target, in_batch, within, similarity, symmetric, normalize, label_smoothing
) -> Tensor:
    """(B, N) losses of (B, N, D) queries and (B, M, D) keys."""
    losses = []
    for b in range(len(query)):
        q, k = (unit(query[b]), unit(key[b])) if normalize else (query[b], key[b])
        t = torch.arange(len(q)) if target is None else target[b]
        options = (in_batch, within, similarity, label_smoothing)
        loss = _one_way(q, k, scale, bank, t, *options)
        if symmetric:
            loss = (loss + _one_way(k, q, scale, bank, t.argsort(), *options)[t]) / 2
        losses.append(loss)
    return torch.stack(losses)


def supcon_truth(features, labels, scale, ref_features, ref_labels, normalize) -> Tensor:
    """(M,) losses; 0 for a row without a positive."""
    columns, column_labels = (features, labels) if ref_features is None else (ref_features, ref_labels)
    if normalize:
        features, columns = unit(features), unit(columns)
    logits = scale * features @ columns.T
    positive = labels[:, None] == column_labels
    if ref_features is None:
        itself = torch.eye(len(labels), dtype=torch.bool)
        positive = positive & ~itself
        logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    count = positive.sum(1)
    loss = logits.logsumexp(1) - logits.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, loss, 0)
