"""InfoNCE over dense scores: each map finds its sequence among all, and each sequence its map."""

from __future__ import annotations

from torch import Tensor

from cmx_fast.ops import _checks
from cmx_fast.ops.dense_scores import dense_scores
from cmx_fast.ops.info_nce import REDUCTIONS, check_target
from cmx_fast.reference.dense_contrastive import contrast_scores


def dense_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
    *,
    pool: str = "max_mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: int = 1,
    target: Tensor | None = None,
    symmetric: bool = True,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    r"""Contrastive cross-entropy of items by the scores of all their tokens.

    .. math:: \ell_b = -\log \frac{\exp(\mathrm{logit\_scale} \cdot S_{b,t(b)})}
                                  {\sum_m \exp(\mathrm{logit\_scale} \cdot S_{bm})}

    S are the scores of :func:`cmx_fast.ops.dense_scores`, which has the pools, the masks and the heads. ``symmetric``
    averages this with the same loss of the keys looking for their query. With the default pool it is DenseAV's loss
    (Hamilton et al. 2024).

    Args:
        query, key, pool, query_mask, key_mask, heads, normalize, impl: as in :func:`cmx_fast.ops.dense_scores`.
        logit_scale: 1 / temperature, a positive number or 0-d tensor, already exponentiated; differentiable. Default
            1 / 0.07: MoCo's.
        target: (B,) int64, the item of ``key`` that is each query's positive; default ``arange(B)``. With ``symmetric``
            it must be a permutation.
        symmetric: also find each key's query (the default); needs B == M.
        reduction: "mean" (the default) or "sum" over all queries, or "none" for the (B,) losses.
        temperature: in place of ``logit_scale``, of which it is the reciprocal; a tensor's gradient reaches it.

    Returns:
        A float32 tensor (float64 for float64 inputs), 0-d unless ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice, before any work.
        NotImplementedError: second derivatives.

    Memory and cost: those of the scores, and a few matrices of their size, (B, M).

    Example:
        >>> import torch
        >>> from cmx_fast.ops import dense_contrastive
        >>> picture = torch.randn(8, 64, 14, 14, generator=torch.Generator().manual_seed(0)).requires_grad_()
        >>> speech = torch.randn(8, 50, 64, generator=torch.Generator().manual_seed(1))
        >>> dense_contrastive(picture, speech, 10.0, heads=2, normalize=True).backward()
        >>> picture.grad.shape
        torch.Size([8, 64, 14, 14])
    """
    _checks.check_flags(symmetric=symmetric)
    _checks.check_choice("reduction", reduction, REDUCTIONS)
    for name, x in (("query", query), ("key", key)):
        _checks.check_floating(name, x, 3, "(items, tokens, D) or (items, D, *S)")
    scale = _checks.scale_tensor(logit_scale, query, temperature)
    check_target(query.shape[:1], key.shape[0], target, symmetric, query.device)
    scores = dense_scores(
        query,
        key,
        pool=pool,
        query_mask=query_mask,
        key_mask=key_mask,
        heads=heads,
        normalize=normalize,
        impl=impl,
    )
    return contrast_scores(scores, scale, target, symmetric, reduction)
