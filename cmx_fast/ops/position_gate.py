"""The channels' maximum and mean at every position, and a gate per position with the addition and ReLU behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def pool_channels(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Maximum and mean of the channels at every position, from one read.

    The input of the convolution in CBAM's spatial attention (Woo et al., ECCV 2018, eq. 3).

    Args:
        x: (B, C, *), float32, float64, bfloat16 or float16, at least one channel. Differentiable; of equal channels
            the first gets the maximum's gradient.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        (B, 2, *) float32 (float64 for float64 x): maximum, mean. NaN in a channel shows in both.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape. NotImplementedError: second derivatives.

    Cost: one read forward, one write backward. Channels-last x goes to the reference; of other layouts a copy is made.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import pool_channels
        >>> pool_channels(torch.tensor([[[1.0], [5.0]]]))
        tensor([[[5.],
                 [3.]]])
    """
    impl = _check(x, impl)
    if impl == "reference":
        return reference.pool_channels(x)
    pooled, _ = torch.ops.cmx_fast.pool_channels_fwd(x.flatten(2).contiguous())
    return pooled.reshape(x.shape[0], 2, *x.shape[2:])


def position_gate(x: Tensor, gate: Tensor, *, residual: Tensor | None = None, impl: str = "auto") -> Tensor:
    """Multiply x by a factor per position; with a residual ``relu(x * gate + residual)``, the end of a ResNet's block.

    Args:
        x: (B, C, *), float32, float64, bfloat16 or float16. Differentiable.
        gate: (B, 1, *), any floating dtype; used in float32, or float64 for float64 x. Differentiable.
        residual: of x's shape and dtype. Differentiable.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        x's shape and dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, before any work.
        NotImplementedError: second derivatives.

    Cost: x and the residual are read once, the output is written once; backward reads the gradient, x and (with a
    residual) the output once and writes the gradients. Channels-last x goes to the reference, whose result stays so; of
    other layouts a copy is made.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import position_gate
        >>> position_gate(torch.ones(1, 2, 2), torch.tensor([[[0.0, 0.5]]]))
        tensor([[[0.0000, 0.5000],
                 [0.0000, 0.5000]]])
    """
    impl = _check(x, impl)
    _checks.check_floating("gate", gate, 3, "(B, 1, *)")
    shape = (x.shape[0], 1, *x.shape[2:])
    if tuple(gate.shape) != shape:
        raise ValueError(f"gate must have shape {shape}, got {tuple(gate.shape)}")
    if gate.device != x.device:
        raise ValueError(f"gate is on {gate.device} but x is on {x.device}; move one of them")
    if residual is not None:
        _checks.check_same("residual", residual, "x", x)
    gate = gate.to(torch.promote_types(x.dtype, torch.float32))
    if impl == "reference":
        return reference.position_gate(x, gate, residual=residual)
    flat = None if residual is None else residual.flatten(2).contiguous()
    out = torch.ops.cmx_fast.position_gate_fwd(
        x.flatten(2).contiguous(), gate.flatten(2)[:, 0].contiguous(), flat
    )
    return out.view(x.shape)


def _check(x: Tensor, impl: str) -> str:
    _checks.check_floating("x", x, 3, "(B, C, *)")
    if x.shape[1] == 0:
        raise ValueError(f"x must have channels, got shape {tuple(x.shape)}")
    if impl == "auto" and _checks.channels_last(x):
        impl = "reference"
    return choose("position_gate", impl, x.device.type, x.dtype, x.shape[1])


if HAS_EXTENSION:

    def _wide(x):
        return torch.promote_types(x.dtype, torch.float32)

    @torch.library.register_fake("cmx_fast::pool_channels_fwd")
    def _(x):
        batch, _, positions = x.shape
        return x.new_empty(batch, 2, positions, dtype=_wide(x)), x.new_empty(
            batch, positions, dtype=torch.int32
        )

    @torch.library.register_fake("cmx_fast::pool_channels_bwd")
    def _(grad_pooled, peak, x):
        return torch.empty_like(x)

    @torch.library.register_fake("cmx_fast::position_gate_fwd")
    def _(x, gate, residual):
        return torch.empty_like(x)

    @torch.library.register_fake("cmx_fast::position_gate_bwd")
    def _(grad_out, x, gate, out):
        return (
            torch.empty_like(x),
            torch.empty_like(gate),
            x.new_empty(0) if out is None else torch.empty_like(x),
        )

    def _save_pool(ctx, inputs, output):
        ctx.save_for_backward(output[1], inputs[0])
        ctx.mark_non_differentiable(output[1])

    def _pool_backward(ctx, grad_pooled, _):
        return torch.ops.cmx_fast.pool_channels_bwd(grad_pooled.contiguous(), *ctx.saved_tensors)

    def _save(ctx, inputs, output):
        x, gate, residual = inputs
        ctx.save_for_backward(x, gate, None if residual is None else output)

    def _backward(ctx, grad_out):
        # .sum() sends a stride-0 gradient.
        dx, dgate, dresidual = torch.ops.cmx_fast.position_gate_bwd(grad_out.contiguous(), *ctx.saved_tensors)
        return dx, dgate, None if ctx.saved_tensors[2] is None else dresidual

    def _refuse(ctx, *_):
        raise NotImplementedError(
            "pool_channels and position_gate have no second derivatives; use impl='reference' for them"
        )

    torch.library.register_autograd("cmx_fast::pool_channels_fwd", _pool_backward, setup_context=_save_pool)
    torch.library.register_autograd("cmx_fast::position_gate_fwd", _backward, setup_context=_save)
    for _name in ("pool_channels", "position_gate"):
        torch.library.register_autograd(f"cmx_fast::{_name}_bwd", _refuse)
        register_triton(f"{_name}_fwd", f"position_gate.{_name}_fwd")
        register_triton(f"{_name}_bwd", f"position_gate.{_name}_bwd")
