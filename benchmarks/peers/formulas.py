"""The eager formulas, the way training code writes them: plain PyTorch, every N x N matrix in memory.

They are the baselines of the benchmarks, so they keep the originals' work (both products of CLIP, the copy of the bank)
and use nothing of this package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """OpenCLIP's loss in one process: a product and a cross-entropy per direction; features (N, D)."""
    logits_per_image = logit_scale * image @ text.T
    logits_per_text = logit_scale * text @ image.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2


def supcon(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SupContrast's loss over rows (M, D) with labels (M,): float masks and log-probabilities."""
    positive = torch.eq(labels.view(-1, 1), labels.view(1, -1)).float()
    similarity = torch.matmul(features, features.T) / temperature
    logits = similarity - similarity.max(dim=1, keepdim=True).values.detach()
    not_itself = torch.ones_like(positive).fill_diagonal_(0)
    positive = positive * not_itself
    exp_logits = torch.exp(logits) * not_itself
    log_probability = logits - torch.log(exp_logits.sum(1, keepdim=True))
    positives = positive.sum(1)
    positives = torch.where(positives < 1e-6, 1, positives)
    return -((positive * log_probability).sum(1) / positives).mean()


def dense_scores(image: Tensor, audio: Tensor) -> Tensor:
    """DenseAV's scores of one head, tokens (B, P, D) and (M, T, D): the maximum over places, the mean over time."""
    return torch.einsum("bpd,mtd->bmpt", image, audio).max(dim=2).values.mean(dim=2)


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: cross-entropy over a row's own key and a copy of the queue (D, K)."""
    positive = torch.einsum("nd,nd->n", query, key).unsqueeze(-1)
    negative = torch.einsum("nd,dk->nk", query, queue.clone().detach())
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def ntxent_with_bank(view0: Tensor, view1: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """lightly's loss with a memory bank (K, D): as MoCo's, and the rows are normalised inside."""
    return moco(F.normalize(view0, dim=1), F.normalize(view1, dim=1), bank.T, temperature)


def ntxent(view0: Tensor, view1: Tensor, temperature: float) -> Tensor:
    """lightly's loss of two views (N, D): four products, two diagonals cut out, one cross-entropy."""
    view0, view1 = F.normalize(view0, dim=1), F.normalize(view1, dim=1)
    n = len(view0)
    others = ~torch.eye(n, dtype=torch.bool, device=view0.device)
    own = [(view @ view.T / temperature)[others].view(n, -1) for view in (view0, view1)]
    cross = [view0 @ view1.T / temperature, view1 @ view0.T / temperature]
    logits = torch.cat([torch.cat([cross[0], own[0]], dim=1), torch.cat([cross[1], own[1]], dim=1)])
    return F.cross_entropy(logits, torch.arange(n, device=view0.device).repeat(2))


def siglip(image: Tensor, text: Tensor, logit_scale: Tensor, bias: Tensor | float) -> Tensor:
    """SigLIP's loss in one process: a sigmoid per pair; features (N, D)."""
    logits = logit_scale * image @ text.T + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Labels (N,) of rows (N, D) by centroids (K, D): a product of the rows' dtype and its smallest."""
    centroids = centroids.to(rows.dtype)
    return torch.addmm(centroids.square().sum(1), rows, centroids.T, alpha=-2).argmin(1)


def lloyd_iteration(x: Tensor, centroids: Tensor, rows: int = 4096) -> Tensor:
    """The next centroids (K, D) of rows x (N, D): products, argmin and sums of some thousand rows at a time."""
    wide = torch.promote_types(
        x.dtype, torch.float32
    )  # bfloat16 sums of thousands of rows would stop growing
    sums, counts = torch.zeros_like(centroids, dtype=wide), x.new_zeros(len(centroids), dtype=torch.int64)
    for part in x.split(rows):
        labels = nearest(part, centroids)
        sums.index_add_(0, labels, part.to(wide))
        counts += torch.bincount(labels, minlength=len(centroids))
    return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centroids)


def pixel_cross_entropy(maps: Tensor, centroids: Tensor, target: Tensor) -> Tensor:
    """PiCIE's loss: unit features (B, D, H, W) through a 1 x 1 convolution with the centroids (K, D)."""
    return F.cross_entropy(F.conv2d(F.normalize(maps, dim=1), centroids[:, :, None, None]), target)


def unrolled_ista(x: Tensor, dictionary: Tensor, step_size: Tensor, penalty: float, steps: int) -> Tensor:
    """Non-negative codes (N, k) of rows x (N, C) in a dictionary (C, k), a gradient step and a ReLU at a time."""
    codes = x.new_zeros(len(x), dictionary.shape[1])
    for _ in range(steps):
        residual = codes @ dictionary.T - x
        codes = torch.relu(codes - step_size * (residual @ dictionary + penalty))
    return codes


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """DANet's: the scores of all positions, their softmax without a scale, and the values' means."""
    return torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=2), value)


def encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """EncNet's encoding layer of features (B, D, N): residuals (B, N, K, D), weighted and summed."""
    residual = x.transpose(1, 2)[:, :, None] - codewords
    weights = torch.softmax(scale * residual.square().sum(3), dim=2)
    return (weights[..., None] * residual).sum(1)


def squeeze_excite(x: Tensor, residual: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The end of senet.pytorch's block: features (B, C, H, W) gated per channel, the addition, the ReLU."""
    gate = torch.sigmoid(F.linear(F.relu(F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), lower)), upper))
    return F.relu(x * gate[:, :, None, None].expand_as(x) + residual)


def cbam(x: Tensor, residual: Tensor, lower: Tensor, upper: Tensor, window: Tensor) -> Tensor:
    """The end of CBAM's block, as its authors write it: a gate per channel, then one per position."""
    pools = F.avg_pool2d(x, x.shape[2:]), F.max_pool2d(x, x.shape[2:])
    both = [F.linear(F.relu(F.linear(pool.flatten(1), lower)), upper) for pool in pools]
    x = x * torch.sigmoid(both[0] + both[1])[:, :, None, None].expand_as(x)
    pooled = torch.cat([x.max(1).values[:, None], x.mean(1)[:, None]], dim=1)
    gate = torch.sigmoid(F.batch_norm(F.conv2d(pooled, window, padding=3), None, None, training=True))
    return F.relu(x * gate + residual)


def channel_attention(x: Tensor) -> Tensor:
    """DANet's attention over channels, as its code has it: the largest energy minus each, in memory; gamma is 1."""
    query = x.flatten(2)
    energy = torch.bmm(query, query.transpose(1, 2))
    energy = energy.max(-1, keepdim=True).values.expand_as(energy) - energy
    return torch.bmm(torch.softmax(energy, dim=-1), query).view_as(x) + x


def two_banks(query: Tensor, key: Tensor, banks: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """MoCo's loss with the keys' and the queries' queues (K, D) each: CMAC's eq. 7 as MoCo's users would write it."""
    return moco(query, key, torch.cat(banks).T, temperature)


def pyramid_correlation(features: Tensor, filters: Tensor) -> Tensor:
    """Cosine maps (B, T, H, W) in [0, 1] of filters (B, C) over features (B, C, T, H, W) at two scales, averaged."""
    kernel = filters[:, :, None, None, None]
    fine = F.cosine_similarity(features, kernel, dim=1)
    coarse = F.cosine_similarity(F.avg_pool3d(features, (1, 2, 2)), kernel, dim=1)
    coarse = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="trilinear")[:, 0]
    return (1 + (fine + coarse) / 2) / 2
