"""Non-negative sparse codes of vectors in a learned dictionary, by unrolled ISTA steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton


def sparse_code(
    x: Tensor,
    dictionary: Tensor,
    *,
    steps: int = 10,
    lam: float = 0.1,
    step_size: float | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Sparse codes without the T steps in memory.

    .. math:: a_0 = 0, \qquad a_{t+1} = \max\left(0,\; a_t - \eta\,(D^\top (D a_t - x) + \lambda)\right)

    T = ``steps`` steps of ISTA towards the least :math:`\lVert x - D a \rVert^2 / 2 + \lambda \lVert a \rVert_1` over
    :math:`a \ge 0` (C2L's eq. 2 and 4, with one code per pixel and a dictionary shared by all). Differentiable through
    all steps in ``x`` and ``dictionary``; the step size counts as a constant.

    Args:
        x: (*, C) float32, float64, bfloat16 or float16.
        dictionary: (C, k), any floating dtype; used in float32, or float64 for a float64 ``x``. Where training lets its
            columns grow, project them to norm at most 1 (:meth:`cmx_fast.nn.SparseCode.project_`).
        steps: T, at least 1 (the paper names none; default ours).
        lam: :math:`\lambda`, not negative (the paper names none; default ours, CRATE's).
        step_size: :math:`\eta`; default :math:`1 / \lVert D \rVert_2^2`, with which the objective never rises.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        codes (*, k), non-negative, in the dtype of ``x``. NaN in a vector gives NaN codes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value, before any work.
        NotImplementedError: second derivatives.

    Memory: the codes, and a tile. Cost: with the Gram matrix :math:`D^\top D` a step is one N x k x k product instead
    of two N x C x k; backward makes the steps again and two more such products each.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import sparse_code
        >>> x = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
        >>> codes = sparse_code(x, torch.eye(3), steps=1, step_size=1.0)
        >>> codes.sum().backward()
        >>> x.grad.tolist()
        [[1.0, 0.0, 1.0]]
    """
    _checks.check_floating("x", x, 1, "(*, C)")
    _checks.check_floating("dictionary", dictionary, 2, "(C, k)")
    if dictionary.dim() != 2 or 0 in dictionary.shape:
        raise ValueError(f"dictionary must have shape (C, k), neither 0, got {tuple(dictionary.shape)}")
    if x.shape[-1] != dictionary.shape[0]:
        raise ValueError(
            f"x has {x.shape[-1]} features per vector but dictionary has {dictionary.shape[0]} rows; they must be equal"
        )
    if x.device != dictionary.device:
        raise ValueError(f"x is on {x.device} but dictionary is on {dictionary.device}; move one of them")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam must be finite and not negative, got {lam}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    (x,) = _checks.autocast(x)
    dictionary = dictionary.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    impl = choose("sparse_code", impl, x.device.type, x.dtype, dictionary.shape[1])
    # Autocast would round the Gram matrix, and a step that is a little too long diverges.
    with torch.autocast(x.device.type, enabled=False):
        if step_size is None:
            size = 1 / reference.spectral_norm_squared(dictionary.detach())
        else:
            size = dictionary.new_full((), step_size)
        if impl == "reference":
            return reference.sparse_code(x, dictionary, steps=steps, lam=lam, step_size=size)
    # (B, P, C) is read as it lies, the transposed view of a map included.
    rows = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
    codes = torch.ops.cmx_fast.sparse_code_fwd(rows, dictionary, size, float(lam), steps)
    return codes.reshape(*x.shape[:-1], dictionary.shape[1])


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::sparse_code_fwd")
    def _(x, dictionary, step_size, lam, steps):
        return x.new_empty(*x.shape[:2], dictionary.shape[1])

    @torch.library.register_fake("cmx_fast::sparse_code_bwd")
    def _(grad_codes, x, dictionary, step_size, lam, steps):
        return torch.empty_like(x), dictionary.new_empty(dictionary.shape)

    def _save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.lam, ctx.steps = inputs[3:]

    def _backward(ctx, grad_codes):
        # .sum() sends a stride-0 gradient.
        gradients = torch.ops.cmx_fast.sparse_code_bwd(
            grad_codes.contiguous(), *ctx.saved_tensors, ctx.lam, ctx.steps
        )
        return *gradients, None, None, None

    def _refuse(ctx, *_):
        raise NotImplementedError("sparse_code has no second derivatives; use impl='reference' for them")

    torch.library.register_autograd("cmx_fast::sparse_code_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::sparse_code_bwd", _refuse)
    register_triton("sparse_code_fwd", "sparse_code.sparse_code_fwd")
    register_triton("sparse_code_bwd", "sparse_code.sparse_code_bwd")
