"""Scores of pairs of items by all their tokens: a map's places against a sequence's tokens, pooled."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._cache import fits
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton
from cmx_fast.reference.dense_scores import POOLS, token_rows


def dense_scores(
    query: Tensor,
    key: Tensor,
    *,
    pool: str = "max_mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    heads: int = 1,
    normalize: bool = False,
    impl: str = "auto",
) -> Tensor:
    r"""Scores of every query item with every key item, pooled over the similarities of their tokens.

    .. math:: S_{bm} = \frac{1}{T_m} \sum_t \max_{p, h} \; \langle q_{bph}, k_{mth} \rangle
              \qquad (\texttt{pool="max\_mean"})

    No similarities of all tokens exist at once: of each token only the best place stays. The tokens of an item are the
    places of a map or the steps of a sequence.

    ============  ==================================  =====================================================
    pool          over places p, over tokens t        of
    ============  ==================================  =====================================================
    "max_mean"    mean over t of the maximum over p   DenseAV (Hamilton et al. 2024) with its heads; FILIP's
                                                      text to image (Yao et al. 2022); MISA (Harwath et al.
                                                      2018)
    "mean_max"    mean over p of the maximum over t   FILIP's image to text; SIMA (Harwath et al.)
    "max_sum"     sum over t of the maximum over p    MaxSim (ColBERT, Khattab and Zaharia 2020): key is the
                                                      question
    "sum_max"     sum over p of the maximum over t    the same, query is the question (PyLate, ColPali)
    "max"         maximum over both                   multiple-instance learning
    "mean"        mean over both                      SISA (Harwath et al.)
    ============  ==================================  =====================================================

    Args:
        query: tokens (B, P, D), or maps (B, D, *S) of two or more dimensions, read as they lie; P is then the number of
            places. float32, float64, bfloat16 or float16.
        key: (M, T, D) or (M, D, *S), the same dtype and device. Three dimensions are always tokens: pass a sequence
            (M, D, T) as ``key.transpose(1, 2)``.
        pool: one of the table's; default DenseAV's.
        query_mask: (B, P) bool, True for a real token; others count for nothing, whatever is in them. Default: all.
        key_mask: (M, T) bool, the same of the keys.
        heads: h, into which the D features are split side by side; the similarity of two tokens is the largest of their
            heads' (DenseAV's, which has 2). Default 1. Not with "mean".
        normalize: divide every token by max(norm, 1e-12) first. Default no: ours.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (B, M) float32 (float64 for float64 inputs). Gradients arrive in the inputs' dtype. Of equal similarities the
        first gets the gradient, as in ``torch.max``: by its place, then by its head. NaN in a real token shows. An item
        without any real token is an error on the CPU, since it has neither maximum nor mean; on a GPU its scores are
        NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice, before any work.
        NotImplementedError: second derivatives.

    Memory: on the CPU at most 32 MiB of packed tokens, and one to four bytes per pair of an item and a token
    kept for the backward pass, where B M T of them (B M P for "mean_max" and "sum_max") fit
    :func:`cmx_fast.ops.cache_budget`; else they are found again. Tokens that are normalised, of half precision or of a
    map are copied in float32 in the backward pass. Cost: B M P T D multiplications forward and D for each of the B M T
    maxima per gradient; the forward ones again where nothing was kept. "mean" is the product of the items' means.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import dense_scores
        >>> picture = torch.randn(8, 64, 14, 14, generator=torch.Generator().manual_seed(0))
        >>> speech = torch.randn(8, 50, 64, generator=torch.Generator().manual_seed(1))
        >>> spoken = torch.arange(50) < torch.tensor([50, 20, 31, 50, 7, 44, 12, 50])[:, None]
        >>> dense_scores(picture, speech, key_mask=spoken, heads=2, normalize=True).shape
        torch.Size([8, 8])
    """
    query, key, query_mask, key_mask = check_arguments(
        query, key, pool, query_mask, key_mask, heads, normalize
    )
    impl = choose("dense_scores", impl, query.device.type, query.dtype, query.shape[-1])
    if impl == "reference":
        return reference.dense_scores(
            query,
            key,
            pool=pool,
            query_mask=query_mask,
            key_mask=key_mask,
            heads=heads,
            normalize=normalize,
        )
    if pool == "mean":
        # Autocast would round the means.
        with torch.autocast(query.device.type, enabled=False):
            means = mean_tokens(query, query_mask, normalize), mean_tokens(key, key_mask, normalize)
            return means[0] @ means[1].T
    if POOLS[pool][0] == "max":
        return _maxima(query, key, query_mask, key_mask, POOLS[pool][1], heads, normalize)
    return _maxima(key, query, key_mask, query_mask, POOLS[pool][0], heads, normalize).T


def _maxima(
    query: Tensor,
    key: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    pool: str,
    heads: int,
    normalize: bool,
) -> Tensor:
    """The scores of maxima over the query's tokens, pooled over the key's."""
    needed = query.requires_grad or key.requires_grad
    places = query.shape[0] * key.shape[0] * (1 if pool == "max" else key.shape[1])
    keep = needed and fits(places * place_dtype(query.shape[1] * heads).itemsize)
    return torch.ops.cmx_fast.dense_scores_fwd(
        query, key, query_mask, key_mask, pool, heads, normalize, keep
    )[0]


def place_dtype(places: int) -> torch.dtype:
    """The smallest integers that number this many places."""
    return torch.uint8 if places <= 256 else torch.int16 if places <= 32768 else torch.int32


def mean_tokens(x: Tensor, mask: Tensor | None, normalize: bool) -> Tensor:
    """The means (B, D) of the items' real tokens, in float32 or better; NaN for an item that has none."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    share = x.new_full(x.shape[:2], 1 / x.shape[1])
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0)
        share = mask.to(x.dtype) / mask.sum(1, keepdim=True)
    if normalize and x.shape[-1]:
        x = reference.unit_rows(x.flatten(0, 1), 1e-12).view_as(x)
    return (share[:, None] @ x)[:, 0]


def check_arguments(
    query: Tensor,
    key: Tensor,
    pool: str,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    heads: int,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Tokens (B, P, D) and (M, T, D) in the dtype that the kernels take, and masks; or an error that names one."""
    shapes = {"query": "(B, P, D) or (B, D, *S)", "key": "(M, T, D) or (M, D, *S)"}
    _checks.check_flags(normalize=normalize)
    for name, x in (("query", query), ("key", key)):
        _checks.check_floating(name, x, 3, shapes[name])
    query, key = (token_rows(x) for x in _checks.autocast(query, key))
    _checks.check_alike("key", key, "query", query)
    for name, x in (("query", query), ("key", key)):
        if x.shape[1] == 0:
            raise ValueError(f"{name} must have at least one token per item, got shape {tuple(x.shape)}")
    _checks.check_choice("pool", pool, list(POOLS))
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"heads must be an integer, got {heads!r}")
    if heads < 1 or query.shape[-1] % heads:
        raise ValueError(
            f"heads must be positive and divide the {query.shape[-1]} features of a token, got {heads}"
        )
    if pool == "mean" and heads > 1:
        raise ValueError(f"pool='mean' takes one head, got heads={heads}; a maximum over heads has no mean")
    return query, key, _real("query", query, query_mask), _real("key", key, key_mask)


def _real(name: str, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask, or an error where it is none or leaves an item without a token."""
    if mask is None:
        return None
    name = f"{name}_mask"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor, True for a real token, got {kind}")
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"{name} must have shape {tuple(x.shape[:2])}, a flag per token, got {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(f"{name} is on {mask.device} but the tokens are on {x.device}; move one of them")
    if _checks.readable(mask) and not mask.any(1).all():
        item = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"{name} leaves item {item} without a real token; leave such items out of the batch")
    return mask


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::dense_scores_fwd")
    def _(query, key, query_mask, key_mask, pool, heads, normalize, keep):
        (b, p, _), (m, t, _) = query.shape, key.shape
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        return (
            query.new_empty(b, m, dtype=wide),
            query.new_empty(b, m, 1 if pool == "max" else t, dtype=place_dtype(p * heads))
            if keep
            else query.new_empty(0, dtype=torch.int32),
            query.new_empty((b, m) if keep and pool == "max" else (0,), dtype=torch.int32),
        )

    @torch.library.register_fake("cmx_fast::dense_scores_bwd")
    def _(grad_scores, query, key, *rest):
        return tuple(
            torch.empty_like(x) if needed else x.new_empty(0)
            for x, needed in zip((query, key), rest[-2:], strict=True)
        )

    def _save(ctx, inputs, output):
        query, key, query_mask, key_mask, *options, _ = inputs
        ctx.save_for_backward(query, key, query_mask, key_mask, *output[1:])
        ctx.options = options
        ctx.mark_non_differentiable(*output[1:])

    def _backward(ctx, grad_scores, *_):
        needed = ctx.needs_input_grad[:2]
        gradients = torch.ops.cmx_fast.dense_scores_bwd(
            # .sum() sends a stride-0 gradient.
            grad_scores.contiguous(),
            *ctx.saved_tensors,
            *ctx.options,
            *needed,
        )
        pairs = zip(gradients, needed, strict=True)
        return *(gradient if wanted else None for gradient, wanted in pairs), *(None,) * 6

    def _refuse(ctx, *_):
        raise NotImplementedError("dense_scores has no second derivatives; use impl='reference' for them")

    torch.library.register_autograd("cmx_fast::dense_scores_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::dense_scores_bwd", _refuse)
    register_triton("dense_scores_fwd", "dense_scores.launchers.dense_scores_fwd")
    register_triton("dense_scores_bwd", "dense_scores.launchers.dense_scores_bwd")
