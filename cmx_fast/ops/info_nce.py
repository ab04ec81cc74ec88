"""InfoNCE: find each query's own key among in-batch keys, memory banks and the other queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._cache import worth_keeping
from cmx_fast.ops._implementations import HAS_EXTENSION, below_autograd, choose, register_triton

SIMILARITIES = ("dot", "l2", "sql2")
REDUCTIONS = ("mean", "sum", "none")
#: Features up to which a GPU finds the banks' mean rows in the forward pass. Wider means are made in parts, and each
#: part needs the similarities anew.
WIDEST_MEANS = 256


class Options(NamedTuple):
    """The options of the registered ops, by the names and in the order of their schemas (csrc/info_nce.cpp)."""

    in_batch: bool = True
    within: bool = False
    similarity: str = "dot"
    symmetric: bool = True
    normalize: bool = False
    label_smoothing: float = 0.0


def info_nce(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
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
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    r"""Contrastive cross-entropy of queries against keys without the N x M matrix.

    .. math:: \ell_i = -\log \frac{\exp(z_{i,t(i)})}{\sum_{c \in C(i)} \exp(z_{ic})},
              \qquad z_{ij} = \mathrm{logit\_scale} \cdot \mathrm{sim}(q_i, k_j)

    The candidates C(i) are the keys (only the own one with ``in_batch=False``), the rows of every bank and, with
    ``within``, the other queries. ``symmetric`` averages this with the same loss of the keys looking for their query.
    With ``similarity="dot"`` on unit vectors it is CLIP's loss (van den Oord et al. 2018, eq. 4; Radford et al. 2021);
    with ``"l2"`` and scale 1 Sound2Scene's eq. 1; with ``bank``, ``in_batch=False`` and ``symmetric=False`` MoCo's, and
    with two banks CMAC's eq. 7.

    Args:
        query: (*, N, D) float32, float64, bfloat16 or float16.
        key: (*, M, D), the same dtype, device and leading dimensions.
        logit_scale: 1 / temperature, a positive number or 0-d tensor, already exponentiated; differentiable.
            Default 1 / 0.07: MoCo's and SupCon's.
        bank: one (K, D) tensor or several: extra negatives, without gradient, read where they lie; not normalised here.
        in_batch: count the other keys as negatives (CLIP's, and the default).
        within: count the other rows of the same modality as negatives too, never the row itself (SimCLR's; default no).
        similarity: "dot" (CLIP's, and the default), "l2" (minus the distance) or "sql2" (minus its square).
        target: (*, N) int64, the row of ``key`` that is each query's positive; default ``arange(N)``.
            With ``symmetric`` it must be a permutation.
        symmetric: also find each key's query (CLIP's, and the default); needs N == M.
        normalize: divide the rows of ``query`` and ``key`` by max(norm, 1e-12) first. Default no: ours.
        label_smoothing: in [0, 1), the share of the target that is spread evenly over the candidates; none by default.
        reduction: "mean" (the default) or "sum" over all queries, or "none" for the (*, N) losses.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).
        temperature: in place of ``logit_scale``, of which it is the reciprocal; a tensor's gradient reaches it.

    Returns:
        A float32 tensor (float64 for float64 inputs), 0-d unless ``reduction="none"``. Gradients arrive in the inputs'
        dtypes. NaN or an infinity anywhere in the input gives NaN. Logits may be of any size that the dtype has, ties
        among them included.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice, before any work. The value
            of a tensor (``logit_scale`` not positive, ``target`` out of range) is checked on the CPU; on a GPU it
            gives NaN. ``NotImplementedError``: second derivatives.

    Memory: O((N + M) D) plus a tile, and at most :func:`cmx_fast.ops.cache_budget` bytes kept for the backward pass.
    Cost on the CPU: one N x M x D product forward; three more backward, two when the similarities were kept. With banks
    alone against the queries (MoCo's form) two products forward and none backward: the gradient is the bank's mean row.
    On a GPU a symmetric loss takes two forward and four backward, one direction one and two to three, and banks alone
    the same as on the CPU up to 256 features.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import info_nce
        >>> image, speech = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        >>> loss = info_nce(image, speech, 1 / 0.07, normalize=True)
        >>> loss.shape, loss.dtype
        (torch.Size([]), torch.float32)
    """
    _checks.check_flags(in_batch=in_batch, within=within, symmetric=symmetric, normalize=normalize)
    query, key, scale, bank = check_arguments(
        query, key, logit_scale, bank, similarity, reduction, label_smoothing, target, symmetric, temperature
    )
    impl = choose("info_nce", impl, query.device.type, query.dtype, query.shape[-1])
    if impl == "reference":
        return reference.info_nce(
            query,
            key,
            scale,
            bank=bank,
            in_batch=in_batch,
            within=within,
            similarity=similarity,
            target=target,
            symmetric=symmetric,
            normalize=normalize,
            label_smoothing=float(label_smoothing),
            reduction=reduction,
        )
    options = Options(in_batch, within, similarity, symmetric, normalize, float(label_smoothing))
    leading = query.shape[:-1]
    batch = math.prod(leading[:-1])
    query, key = query.reshape(batch, *query.shape[-2:]), key.reshape(batch, *key.shape[-2:])
    if target is not None:
        target = target.reshape(query.shape[:-1])
    if in_batch:
        keep = worth_keeping(query.shape[0] * query.shape[1] * key.shape[1], query, key)
    else:
        # Where only a bank pushes the queries away, its mean row is all that their gradient needs of it.
        only_bank = len(bank) > 0 and not (within or symmetric or label_smoothing) and similarity == "dot"
        keep = only_bank and query.requires_grad and (query.is_cpu or query.shape[2] <= WIDEST_MEANS)
    forward = torch.ops.cmx_fast.info_nce_fwd if torch.compiler.is_compiling() else _InfoNCE.apply
    loss = forward(query, key, scale, bank, target, *options, keep)[0]
    return reference.reduce_loss(loss.reshape(leading), reduction)


def check_arguments(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float,
    bank: Tensor | Sequence[Tensor],
    similarity: str,
    reduction: str,
    label_smoothing: float,
    target: Tensor | None,
    symmetric: bool,
    temperature: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """query, key, scale and banks in the dtypes that the kernels take, or an error that names the argument."""
    _checks.check_floating("query", query, 2, "(*, N, D)")
    _checks.check_floating("key", key, 2, "(*, M, D)")
    query, key = _checks.autocast(query, key)
    _checks.check_alike("key", key, "query", query)
    if query.shape[:-2] != key.shape[:-2]:
        raise ValueError(
            f"query and key must agree in their leading dimensions, got {query.shape} and {key.shape}"
        )
    bank = (bank,) if isinstance(bank, Tensor) else tuple(bank)
    for index, rows in enumerate(bank):
        _checks.check_floating(f"bank[{index}]", rows, 2, "(K, D)")
        if rows.dim() != 2:
            raise ValueError(f"bank[{index}] must have shape (K, D), got {tuple(rows.shape)}")
    bank = tuple(_checks.autocast(*(rows.detach() for rows in bank))) if bank else ()
    for index, rows in enumerate(bank):
        _checks.check_alike(f"bank[{index}]", rows, "query", query)
    _checks.check_choice("similarity", similarity, SIMILARITIES)
    _checks.check_choice("reduction", reduction, REDUCTIONS)
    _checks.check_fraction("label_smoothing", label_smoothing)
    scale = _checks.scale_tensor(logit_scale, query, temperature)
    check_target(query.shape[:-1], key.shape[-2], target, symmetric, query.device)
    return query, key, scale, bank


def check_target(
    queries: Sequence[int], m: int, target: Tensor | None, symmetric: bool, device: torch.device
) -> None:
    """Require a target that fits m keys, of queries of this shape."""
    n = queries[-1]
    if symmetric and n != m:
        raise ValueError(f"symmetric needs as many keys as queries, got {m} and {n}; pass symmetric=False")
    if target is None:
        if n > m:
            raise ValueError(
                f"{n} queries but {m} keys: pass target, the row of key that belongs to each query"
            )
        return
    _checks.check_index("target", target, queries, device)
    if not _checks.readable(target) or target.numel() == 0:
        return
    low, high = target.min().item(), target.max().item()
    if low < 0 or high >= m:
        raise ValueError(f"target must lie in [0, {m}), the rows of key; got values from {low} to {high}")
    if symmetric and not torch.equal(target.sort(-1).values, torch.arange(n).expand_as(target)):
        raise ValueError("symmetric needs a target that is a permutation of the keys; pass symmetric=False")


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::info_nce_fwd")
    def _(
        query,
        key,
        logit_scale,
        bank,
        target,
        in_batch,
        within,
        similarity,
        symmetric,
        normalize,
        smoothing,
        cache,
    ):
        (b, n, d), m = query.shape, key.shape[1]
        return (
            logit_scale.new_empty(b, n),
            logit_scale.new_empty(b, 4, n),
            logit_scale.new_empty(b, 4, m if symmetric else 0),
            logit_scale.new_empty(b, n, m if in_batch else d) if cache else logit_scale.new_empty(0),
        )

    @torch.library.register_fake("cmx_fast::info_nce_bwd")
    def _(grad, query, key, logit_scale, *saved_and_options):
        need_query, need_key = saved_and_options[-2:]
        return (
            query.new_empty(query.shape if need_query else (0,)),
            key.new_empty(key.shape if need_key else (0,)),
            torch.empty_like(logit_scale),
        )

    def _save(ctx, inputs, output):
        query, key, logit_scale, bank, target, *options, _ = inputs
        ctx.save_for_backward(query, key, logit_scale, target, *output[1:], *bank)
        ctx.options = Options(*options)

    def _backward(ctx, grad_loss, *_):
        query, key, logit_scale, target, row_stats, col_stats, saved, *bank = ctx.saved_tensors
        need_query, need_key, need_scale = ctx.needs_input_grad[:3]
        dquery, dkey, dscale = torch.ops.cmx_fast.info_nce_bwd(
            # .sum() sends a stride-0 gradient.
            grad_loss.contiguous(),
            query,
            key,
            logit_scale,
            bank,
            target,
            *ctx.options,
            row_stats,
            col_stats,
            saved,
            need_query,
            need_key,
        )
        return (
            dquery if need_query else None,
            dkey if need_key else None,
            dscale if need_scale else None,
            [None] * len(bank),
            *(None,) * (len(ctx.options) + 2),
        )

    def _refuse(ctx, *_):
        raise NotImplementedError("info_nce has no second derivatives; use impl='reference' for them")

    class _InfoNCE(torch.autograd.Function):
        """The op with its autograd as eager code calls it: register_autograd costs 100 us of Python a call."""

        @staticmethod
        def forward(ctx, *inputs):
            with below_autograd():
                output = torch.ops.cmx_fast.info_nce_fwd(*inputs)
            _save(ctx, inputs, output)
            return output[:1]

        @staticmethod
        def backward(ctx, grad_loss):
            gradients = _backward(ctx, grad_loss)
            return *gradients[:3], None, *gradients[4:]

    torch.library.register_autograd("cmx_fast::info_nce_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::info_nce_bwd", _refuse)
    register_triton("info_nce_fwd", "info_nce.launchers.info_nce_fwd")
    register_triton("info_nce_bwd", "info_nce.launchers.info_nce_bwd")
