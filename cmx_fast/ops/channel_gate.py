"""A gate per channel made of all channels' means, with the addition and the ReLU that follow it in a ResNet's block."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def channel_gate(
    x: Tensor,
    hidden_weight: Tensor,
    gate_weight: Tensor,
    hidden_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    *,
    maximum: bool = False,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Multiply every channel by a factor in (0, 1) that a small network makes of all channels' means.

    .. math:: y_c = x_c\, \sigma\left(\sum_k W_2 \operatorname{relu}(W_1 p_k + b_1) + b_2\right)_c, \qquad
              p_1 = \operatorname{mean}_p x_p,\; p_2 = \max_p x_p

    Squeeze-and-excitation (Hu et al., CVPR 2018, eqs. 2 to 4) without p_2, CBAM's channel attention (Woo et al., ECCV
    2018, eq. 2) with it. With a residual the result is relu(y + residual): the end of a ResNet's block.

    Args:
        x: (B, C, *), float32, float64, bfloat16 or float16, at least one position. Differentiable.
        hidden_weight: W_1, (H, C). gate_weight: W_2, (C, H). hidden_bias: (H,). gate_bias: (C,). Any floating dtype;
            used in float32, or float64 for float64 x. Differentiable.
        maximum: add p_2 (CBAM's; default no), whose gradient goes to the first of equal positions.
        residual: of x's shape and dtype, added before a ReLU; default neither. Differentiable.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        x's shape and dtype. NaN in x shows.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, before any work.
        NotImplementedError: second derivatives.

    Memory: the output and a few numbers per channel. Cost: on the CPU x and the residual are read once and the output
    is written once; backward reads the gradient, x and (with a residual) the output once and writes the gradients. On a
    GPU x is read twice. Channels-last x goes to the reference, whose result stays so; of other layouts a copy is made.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import channel_gate
        >>> x = torch.ones(1, 2, 3, 3)
        >>> channel_gate(x, torch.zeros(1, 2), torch.zeros(2, 1)).unique()
        tensor([0.5000])
    """
    _checks.check_flags(maximum=maximum)
    _checks.check_floating("x", x, 3, "(B, C, *)")
    channels = x.shape[1]
    if 0 in x.shape[1:]:
        raise ValueError(f"x must have channels and positions, got shape {tuple(x.shape)}")
    _checks.check_floating("hidden_weight", hidden_weight, 2, "(H, C)")
    if hidden_weight.dim() != 2 or hidden_weight.shape[1] != channels or hidden_weight.shape[0] == 0:
        raise ValueError(
            f"hidden_weight must have shape (H, {channels}) with H > 0, got {tuple(hidden_weight.shape)}"
        )
    hidden = hidden_weight.shape[0]
    for name, tensor, shape, sides in (
        ("hidden_weight", hidden_weight, (hidden, channels), "(H, C)"),
        ("gate_weight", gate_weight, (channels, hidden), "(C, H)"),
        ("hidden_bias", hidden_bias, (hidden,), "(H,)"),
        ("gate_bias", gate_bias, (channels,), "(C,)"),
    ):
        if tensor is None and name.endswith("bias"):
            continue
        _checks.check_floating(name, tensor, 1, sides)
        assert tensor is not None
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}; move one of them")
    if residual is not None:
        _checks.check_same("residual", residual, "x", x)
    if impl == "auto" and _checks.channels_last(x):
        impl = "reference"
    impl = choose("channel_gate", impl, x.device.type, x.dtype, channels)
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden_weight, gate_weight = hidden_weight.to(wide), gate_weight.to(wide)
    hidden_bias = x.new_zeros(hidden, dtype=wide) if hidden_bias is None else hidden_bias.to(wide)
    gate_bias = x.new_zeros(channels, dtype=wide) if gate_bias is None else gate_bias.to(wide)
    if impl == "reference":
        return reference.channel_gate(
            x, hidden_weight, gate_weight, hidden_bias, gate_bias, maximum=maximum, residual=residual
        )
    flat = None if residual is None else residual.flatten(2).contiguous()
    out, *_ = torch.ops.cmx_fast.channel_gate_fwd(
        x.flatten(2).contiguous(), flat, hidden_weight, hidden_bias, gate_weight, gate_bias, maximum
    )
    return out.view(x.shape)


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::channel_gate_fwd")
    def _(x, residual, hidden_weight, hidden_bias, gate_weight, gate_bias, maximum):
        (batch, channels, _), pools = x.shape, 2 if maximum else 1
        return (
            torch.empty_like(x),
            hidden_weight.new_empty(batch, pools, channels),
            hidden_weight.new_empty(batch, pools, hidden_weight.shape[0]),
            hidden_weight.new_empty(batch, channels),
            hidden_weight.new_empty(batch, channels if maximum else 0, dtype=torch.int64),
        )

    @torch.library.register_fake("cmx_fast::channel_gate_bwd")
    def _(grad_out, x, out, hidden_weight, gate_weight, hidden, gate, peak):
        dresidual = x.new_empty(0) if out is None else torch.empty_like(x)
        return torch.empty_like(x), dresidual, torch.empty_like(hidden), torch.empty_like(gate)

    def _save(ctx, inputs, output):
        x, residual, hidden_weight, _, gate_weight, *_ = inputs
        out, pooled, hidden, gate, peak = output
        kept = None if residual is None else out
        ctx.save_for_backward(x, kept, hidden_weight, gate_weight, hidden, gate, peak, pooled)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(pooled, hidden, gate, peak)

    def _backward(ctx, grad_out, *_):
        if grad_out is None:
            return (None,) * 7
        *saved, pooled = ctx.saved_tensors
        # .sum() sends a stride-0 gradient.
        dx, dresidual, dhidden, dlogits = torch.ops.cmx_fast.channel_gate_bwd(grad_out.contiguous(), *saved)
        hidden = saved[4]
        return (
            dx,
            None if saved[1] is None else dresidual,
            dhidden.flatten(0, 1).T @ pooled.flatten(0, 1),
            dhidden.sum((0, 1)),
            dlogits.T @ hidden.sum(1),
            dlogits.sum(0) * hidden.shape[1],
            None,
        )

    def _refuse(ctx, *_):
        raise NotImplementedError("channel_gate has no second derivatives; use impl='reference' for them")

    torch.library.register_autograd("cmx_fast::channel_gate_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::channel_gate_bwd", _refuse)
    register_triton("channel_gate_fwd", "channel_gate.channel_gate_fwd")
    register_triton("channel_gate_bwd", "channel_gate.channel_gate_bwd")
