"""Attention for heads of any sizes, those of queries and of values apart, without the score matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> Tensor:
    r"""Softmax attention whose values may be wider than its queries and keys.

    .. math:: o_i = \sum_j \frac{\exp(s\, q_i \cdot k_j)}{\sum_l \exp(s\, q_i \cdot k_l)}\, v_j

    Non-local blocks, DANet's position attention (heads of 64 and 512, s = 1) and OCNet's (256 and 512) are of this
    kind. Library kernels refuse or pad them: these stop at heads of 256 and mostly want equal ones. Keys and values may
    be fewer than queries, as where they are pooled. Vaswani et al. 2017, eq. 1.

    Args:
        query: (*, N, D) float32, float64, bfloat16 or float16.
        key: (*, M, D), value: (*, M, E), of the same dtype, device and leading dimensions.
        scale: s, positive; default D ** -0.5 as in PyTorch's ``scaled_dot_product_attention``.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (*, N, E) in the dtype of the inputs. Without keys it is 0. NaN in a query, a key or a value shows.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value, before any work.
        NotImplementedError: second derivatives.

    Memory: the output and two numbers per query; in backward the gradients and, on the CPU, per thread the scores of 96
    queries twice. Cost on the CPU: forward N M (D + E) multiplications, backward N M (3 D + 2 E).

    Example:
        >>> import torch
        >>> from cmx_fast.ops import attention
        >>> query, key = torch.zeros(4, 8), torch.randn(3, 8)
        >>> attention(query, key, torch.tensor([[0.0], [3.0], [6.0]]))[:, 0].tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    for name, tensor, shape in (
        ("query", query, "(*, N, D)"),
        ("key", key, "(*, M, D)"),
        ("value", value, "(*, M, E)"),
    ):
        _checks.check_floating(name, tensor, 2, shape)
    _checks.check_alike("key", key, "query", query)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[:-2] != query.shape[:-2]:
            raise ValueError(
                f"{name} has leading dimensions {tuple(tensor.shape[:-2])} but query has {tuple(query.shape[:-2])}; "
                "they must be equal"
            )
    if value.device != query.device:
        raise ValueError(f"value is on {value.device} but query is on {query.device}; move one of them")
    if value.dtype != query.dtype:
        raise TypeError(f"value is {value.dtype} but query is {query.dtype}; convert one of them")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"value has {value.shape[-2]} rows but key has {key.shape[-2]}; they must be equal")
    if scale is None:
        scale = max(1, query.shape[-1]) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive and finite number, got {scale!r}")
    query, key, value = _checks.autocast(query, key, value)
    impl = choose("attention", impl, query.device.type, query.dtype, max(query.shape[-1], value.shape[-1]))
    if impl == "reference":
        return reference.attention(query, key, value, scale=scale)
    # Not -1: without elements that has no value.
    batch = math.prod(query.shape[:-2])
    slices = [tensor.reshape(batch, *tensor.shape[-2:]) for tensor in (query, key, value)]
    out, _ = torch.ops.cmx_fast.attention_fwd(*slices, float(scale))
    return out.reshape(*query.shape[:-1], value.shape[-1])


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::attention_fwd")
    def _(query, key, value, scale):
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        return query.new_empty(*query.shape[:2], value.shape[2]), query.new_empty(
            query.shape[0], 2, query.shape[1], dtype=wide
        )

    @torch.library.register_fake("cmx_fast::attention_bwd")
    def _(grad_out, query, key, value, row_stats, scale, need_query, need_key, need_value):
        return tuple(
            tensor.new_empty(tensor.shape if needed else (0,))
            for tensor, needed in ((query, need_query), (key, need_key), (value, need_value))
        )

    def _save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.scale = inputs[3]
        ctx.mark_non_differentiable(output[1])

    def _backward(ctx, grad_out, _):
        needed = ctx.needs_input_grad[:3]
        # .sum() sends a stride-0 gradient.
        gradients = torch.ops.cmx_fast.attention_bwd(
            grad_out.contiguous(), *ctx.saved_tensors, ctx.scale, *needed
        )
        return *(
            gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True)
        ), None

    def _refuse(ctx, *_):
        raise NotImplementedError("attention has no second derivatives; use impl='reference' for them")

    torch.library.register_autograd("cmx_fast::attention_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::attention_bwd", _refuse)
    register_triton("attention_fwd", "attention.attention_fwd")
    register_triton("attention_bwd", "attention.attention_bwd")
