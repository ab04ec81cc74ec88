"""Sigmoid contrastive loss: every pair of a query and a key tells on its own whether it belongs together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, below_autograd, choose, register_triton

REDUCTIONS = ("mean", "sum", "none")
#: The paper's initial scale and bias: exp(t') with t' = log 10, and b.
SIGLIP_SCALE = 10.0
SIGLIP_BIAS = -10.0


def sigmoid_contrastive(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float = SIGLIP_SCALE,
    logit_bias: Tensor | float = SIGLIP_BIAS,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    r"""Sigmoid loss of queries against keys without the N x M matrix.

    .. math:: \ell_i = -\sum_j \log \sigma(s_{ij} z_{ij}),
              \qquad z_{ij} = \mathrm{logit\_scale} \cdot q_i^\top k_j + \mathrm{logit\_bias}

    with s = 1 for positives and -1 for all other pairs. Positives are the pairs (i, i) or, with ids, those whose ids
    are equal: a row may have several, or none. The mean over the rows is SigLIP's loss (Zhai et al. 2023, eq. 1).

    Args:
        query: (*, N, D) float32, float64, bfloat16 or float16.
        key: (*, M, D), the same dtype, device and leading dimensions.
        logit_scale: a positive number or 0-d tensor, already exponentiated; differentiable. Default 10: the paper's
            initial value.
        logit_bias: a number or 0-d tensor, differentiable. Default -10: the paper's initial value.
        query_ids: (*, N) integers of any width, any values. Without ids M must be at least N.
        key_ids: (*, M), given together with ``query_ids``.
        normalize: divide the rows of ``query`` and ``key`` by max(norm, 1e-12) first. Default no: ours.
        reduction: "mean" (the default: the sum of all pairs' losses over the number of queries), "sum", or "none" for
            the (*, N) sums over the keys.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).
        temperature: in place of ``logit_scale``, of which it is the reciprocal; a tensor's gradient reaches it.

    Returns:
        A float32 tensor (float64 for float64 inputs), 0-d unless ``reduction="none"``. Gradients arrive in the inputs'
        dtypes. NaN or an infinity in a row gives its losses NaN. Logits may be of any size that the dtype has.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice, before any work. The value
            of a scale tensor is checked on the CPU; on a GPU one that is not positive gives NaN.
            ``NotImplementedError``: second derivatives.

    Memory: O((N + M) D) plus a tile; on the CPU a panel of 32 MiB. Between the passes the gradients are kept, in
    float32, in place of any similarities. Cost on the CPU: one N x M x D product without gradients; with "mean" and
    "sum" three in the forward pass, which makes the gradients, and none in the backward pass; with "none" two and two.
    On a GPU two and two, more for features wider than a program's output.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import sigmoid_contrastive
        >>> image, text = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        >>> bias = torch.tensor(-10.0, requires_grad=True)
        >>> loss = sigmoid_contrastive(image, text, 10.0, bias, normalize=True)
        >>> loss.shape, loss.dtype
        (torch.Size([]), torch.float32)
    """
    _checks.check_flags(normalize=normalize)
    query, key, scale, bias, query_ids, key_ids = check_arguments(
        query, key, logit_scale, logit_bias, query_ids, key_ids, reduction, temperature
    )
    impl = choose("sigmoid_contrastive", impl, query.device.type, query.dtype, query.shape[-1])
    if impl == "reference":
        return reference.sigmoid_contrastive(
            query, key, scale, bias, query_ids=query_ids, key_ids=key_ids, normalize=normalize, reduction=reduction
        )  # fmt: skip
    leading = query.shape[:-1]
    batch = math.prod(leading[:-1])
    query, key = query.reshape(batch, *query.shape[-2:]), key.reshape(batch, *key.shape[-2:])
    if query_ids is not None and key_ids is not None:
        query_ids, key_ids = query_ids.reshape(query.shape[:-1]), key_ids.reshape(key.shape[:-1])
    inputs = (query, key, scale, bias, query_ids, key_ids, normalize, reduction != "none")
    kept = (grad_follows(query), grad_follows(key))
    forward = (
        torch.ops.cmx_fast.sigmoid_contrastive_fwd
        if torch.compiler.is_compiling()
        else _SigmoidContrastive.apply
    )
    loss = forward(*inputs, *kept)[0]
    if reduction == "none":
        return loss.reshape(leading)
    total = loss.sum()
    return total / (query.shape[0] * query.shape[1]) if reduction == "mean" else total


def grad_follows(x: Tensor) -> bool:
    """True if a backward pass may ask for the tensor's gradient."""
    return x.requires_grad and torch.is_grad_enabled()


def check_arguments(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    reduction: str,
    temperature: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The first six arguments in the dtypes that the kernels take, or an error that names the argument."""
    _checks.check_floating("query", query, 2, "(*, N, D)")
    _checks.check_floating("key", key, 2, "(*, M, D)")
    query, key = _checks.autocast(query, key)
    _checks.check_alike("key", key, "query", query)
    if query.shape[:-2] != key.shape[:-2]:
        raise ValueError(
            f"query and key must agree in their leading dimensions, got {query.shape} and {key.shape}"
        )
    _checks.check_choice("reduction", reduction, REDUCTIONS)
    scale = _checks.scale_tensor(logit_scale, query, temperature, SIGLIP_SCALE)
    bias = _checks.bias_tensor(logit_bias, query)
    if (query_ids is None) != (key_ids is None):
        missing = "key_ids" if key_ids is None else "query_ids"
        raise ValueError(f"query_ids and key_ids go together; {missing} is missing")
    if query_ids is not None and key_ids is not None:
        query_ids = _checks.check_labels("query_ids", query_ids, query.shape[:-1], query.device)
        key_ids = _checks.check_labels("key_ids", key_ids, key.shape[:-1], query.device)
    elif query.shape[-2] > key.shape[-2]:
        raise ValueError(
            f"{query.shape[-2]} queries but {key.shape[-2]} keys: pass query_ids and key_ids, equal for the pairs that "
            "belong together"
        )
    return query, key, scale, bias, query_ids, key_ids


def block_losses(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses (N,) of queries (N, D) against a block of keys (M, D), and what their sums over blocks need backward.

    Returns:
        The losses; their derivatives (2, N) by scale and bias; if ``keep`` the gradient (N, D) of the losses' sum by
        the queries, in the scale's dtype.
    """
    impl = choose("sigmoid_contrastive", impl, query.device.type, query.dtype, query.shape[-1])
    if impl == "reference":
        with torch.enable_grad():
            leaf = query.detach().requires_grad_()
            # A scale and a bias of each row's own: their gradients are the rows'.
            numbers = [x.detach().repeat(len(query), 1).requires_grad_() for x in (scale, bias)]
            loss = reference.sigmoid_contrastive(
                leaf, key, *numbers, query_ids=query_ids, key_ids=key_ids, reduction="none"
            )
            gradient, *slopes = torch.autograd.grad(loss.sum(), (leaf, *numbers))
        return loss.detach(), torch.stack(slopes)[..., 0], gradient.to(scale.dtype)
    ids = [x if x is None else x[None] for x in (query_ids, key_ids)]
    loss, slopes, gradient, _ = torch.ops.cmx_fast.sigmoid_contrastive_fwd(
        query[None], key[None], scale, bias, *ids, False, False, keep, False
    )
    return loss[0], slopes[0], gradient[0] if keep else gradient


def block_key_gradient(
    grad_loss: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    impl: str,
) -> Tensor:
    """The gradient (M, D) by the keys of the losses of queries (N, D), weighted by ``grad_loss`` (N,)."""
    impl = choose("sigmoid_contrastive", impl, query.device.type, query.dtype, query.shape[-1])
    if impl == "reference":
        with torch.enable_grad():
            leaf = key.detach().requires_grad_()
            loss = reference.sigmoid_contrastive(
                query, leaf, scale.detach(), bias.detach(), query_ids=query_ids, key_ids=key_ids, reduction="none"
            )  # fmt: skip
            return torch.autograd.grad((loss * grad_loss).sum(), leaf)[0]
    ids = [x if x is None else x[None] for x in (query_ids, key_ids)]
    unused, nothing = scale.new_zeros(1, 2, len(query)), scale.new_empty(0)
    return torch.ops.cmx_fast.sigmoid_contrastive_bwd(
        grad_loss[None],
        query[None],
        key[None],
        scale,
        bias,
        *ids,
        False,
        False,
        unused,
        nothing,
        nothing,
        False,
        True,
    )[1][0]


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::sigmoid_contrastive_fwd")
    def _(query, key, logit_scale, logit_bias, query_ids, key_ids, normalize, summed, keep_query, keep_key):
        (b, n, d), m = query.shape, key.shape[1]
        # A GPU makes the keys' gradient in the backward pass.
        keep_key = keep_key and summed and query.device.type != "cuda"
        return (
            logit_scale.new_empty((b,) if summed else (b, n)),
            logit_scale.new_empty(b, 2, n),
            logit_scale.new_empty((b, n, d) if keep_query else (0,)),
            logit_scale.new_empty((b, m, d) if keep_key else (0,)),
        )

    @torch.library.register_fake("cmx_fast::sigmoid_contrastive_bwd")
    def _(grad, query, key, logit_scale, logit_bias, *rest):
        need_query, need_key = rest[-2:]
        return (
            query.new_empty(query.shape if need_query else (0,)),
            key.new_empty(key.shape if need_key else (0,)),
            torch.empty_like(logit_scale),
            torch.empty_like(logit_bias),
        )

    def _save(ctx, inputs, output):
        *tensors, ctx.normalize, ctx.summed, _, _ = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    def _backward(ctx, grad_loss, *_):
        *tensors, slopes, query_gradient, key_gradient = ctx.saved_tensors
        need_query, need_key, need_scale, need_bias = ctx.needs_input_grad[:4]
        dquery, dkey, dscale, dbias = torch.ops.cmx_fast.sigmoid_contrastive_bwd(
            # .sum() sends a stride-0 gradient.
            grad_loss.contiguous(),
            *tensors,
            ctx.normalize,
            ctx.summed,
            slopes,
            query_gradient,
            key_gradient,
            need_query,
            need_key,
        )
        return (
            dquery if need_query else None,
            dkey if need_key else None,
            dscale if need_scale else None,
            dbias if need_bias else None,
            *(None,) * 6,
        )

    def _refuse(ctx, *_):
        raise NotImplementedError(
            "sigmoid_contrastive has no second derivatives; use impl='reference' for them"
        )

    class _SigmoidContrastive(torch.autograd.Function):
        """The op with its autograd as eager code calls it: register_autograd costs 100 us of Python a call."""

        @staticmethod
        def forward(ctx, *inputs):
            with below_autograd():
                output = torch.ops.cmx_fast.sigmoid_contrastive_fwd(*inputs)
            _save(ctx, inputs, output)
            return output[:1]

        backward = staticmethod(_backward)

    torch.library.register_autograd("cmx_fast::sigmoid_contrastive_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::sigmoid_contrastive_bwd", _refuse)
    register_triton("sigmoid_contrastive_fwd", "sigmoid_contrastive.launchers.sigmoid_contrastive_fwd")
    register_triton("sigmoid_contrastive_bwd", "sigmoid_contrastive.launchers.sigmoid_contrastive_bwd")
