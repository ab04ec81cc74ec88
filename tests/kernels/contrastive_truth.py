"""InfoNCE and SupCon in float64 from their definitions, one explicit list of candidates per row; gradients by autograd."""

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


def _one_way(query, key, scale, bank, target, in_batch, within, similarity, smoothing):
    n, m = len(query), len(key)
    cross = scale * pair_similarity(query, key, similarity)
    own = scale * pair_similarity(query, query, similarity)
    others = [scale * pair_similarity(query, rows, similarity) for rows in bank]
    losses = []
    for i, t in enumerate(target.tolist()):
        negatives = [rows[i] for rows in others]
        if in_batch:
            negatives += [cross[i, :t], cross[i, t + 1 :]]
        if within:
            negatives += [own[i, :i], own[i, i + 1 :]]
        logits = torch.cat([cross[i, t : t + 1], *negatives])
        log_probability = logits.log_softmax(0)
        losses.append(-(1 - smoothing) * log_probability[0] - smoothing * log_probability.mean())
    return torch.stack(losses) if n else cross.new_zeros(0)


def info_nce_truth(
    query, key, scale, bank, target, in_batch, within, similarity, symmetric, normalize, smoothing
) -> Tensor:
    """(B, N) losses of (B, N, D) queries and (B, M, D) keys."""
    losses = []
    for b in range(len(query)):
        q, k = query[b], key[b]
        if normalize:
            q, k = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
        t = torch.arange(len(q)) if target is None else target[b]
        options = (in_batch, within, similarity, smoothing)
        loss = _one_way(q, k, scale, bank, t, *options)
        if symmetric:
            loss = (loss + _one_way(k, q, scale, bank, t.argsort(), *options)[t]) / 2
        losses.append(loss)
    return torch.stack(losses)


def supcon_truth(features, labels, scale, ref_features, ref_labels, normalize) -> Tensor:
    """(M,) losses; 0 for a row without a positive."""
    columns, column_labels = (features, labels) if ref_features is None else (ref_features, ref_labels)
    if normalize:
        features, columns = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (features, columns))
    logits = scale * features @ columns.T
    losses = []
    for i, label in enumerate(labels.tolist()):
        allowed = torch.ones(len(columns), dtype=torch.bool)
        if ref_features is None:
            allowed[i] = False
        positive = allowed & (column_labels == label)
        if positive.any():
            losses.append(logits[i, allowed].logsumexp(0) - logits[i, positive].mean())
        else:
            losses.append(logits[i].sum() * 0)
    return torch.stack(losses)
