"""Supervised contrastive loss: rows of the same label attract, all others repel."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._cache import worth_keeping
from cmx_fast.ops._implementations import HAS_EXTENSION, below_autograd, choose, register_triton

REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")


def supcon(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float = _checks.DEFAULT_SCALE,
    *,
    ref_features: Tensor | None = None,
    ref_labels: Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    impl: str = "auto",
    temperature: Tensor | float | None = None,
) -> Tensor:
    r"""Supervised contrastive loss without the M x M matrix.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{\exp(z_{ip})}{\sum_{a \ne i} \exp(z_{ia})}, \quad z_{ij} = \mathrm{logit\_scale}\; x_i^\top x_j

    P(i) are the other rows with i's label; a row without one has loss 0 and no gradient (Khosla et al. 2020, eq. 2,
    :math:`L^{sup}_{out}`; CSIR's eq. 7 on stacked image and speech rows). With ``ref_features`` the columns are those
    rows and nothing is excluded (CSIR's strict speech x image reading).

    Args:
        features: (M, D) float32, float64, bfloat16 or float16.
        labels: (M,) integers of any width, any values.
        logit_scale: 1 / temperature, a positive number or 0-d tensor; differentiable. Default: the paper's code's.
        ref_features: (R, D), the columns; default the features themselves without the row's own.
        ref_labels: (R,) integers, given together with ``ref_features``.
        normalize: divide every row by max(norm, 1e-12) first.
        reduction: "mean" over all rows (the paper's code), "mean_nonzero" over the rows whose loss is above 0
            (pytorch-metric-learning's), "sum" (CSIR's eq. 7 as printed), or "none" for the (M,) losses.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).
        temperature: in place of ``logit_scale``, of which it is the reciprocal; a tensor's gradient reaches it.

    Returns:
        A float32 tensor (float64 for float64 inputs), 0-d unless ``reduction="none"``. NaN or an
        infinity anywhere gives NaN. Logits may be of any size that the dtype has, ties among them included.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice, before any work.
        NotImplementedError: second derivatives.

    Memory: O(M D) plus a tile, and at most :func:`cmx_fast.ops.cache_budget` bytes kept for the backward pass.
    Cost on the CPU: half an M x M x D product forward (the similarity is symmetric); one more backward, and half a
    product again when the similarities were not kept; positives by sums over their classes, O(M D). On a GPU one
    product forward and two backward (with ``ref_features`` two per side), labels compared in their tiles; four
    launches, five with ``normalize``.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import supcon
        >>> x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> supcon(x, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), normalize=True).backward()
        >>> x.grad.shape
        torch.Size([8, 64])
    """
    _checks.check_flags(normalize=normalize)
    features, labels, scale, ref_features, ref_labels = check_arguments(
        features, labels, logit_scale, ref_features, ref_labels, reduction, temperature
    )
    columns = features if ref_features is None else ref_features
    impl = choose("supcon", impl, features.device.type, features.dtype, features.shape[1])
    if impl == "reference":
        return reference.supcon(
            features,
            labels,
            scale,
            ref_features=ref_features,
            ref_labels=ref_labels,
            normalize=normalize,
            reduction=reduction,
        )
    keep = worth_keeping(features.shape[0] * columns.shape[0], features, columns)
    forward = torch.ops.cmx_fast.supcon_fwd if torch.compiler.is_compiling() else _SupCon.apply
    loss = forward(features, labels, scale, ref_features, ref_labels, normalize, keep)[0]
    return reference.reduce_loss(loss, reduction)


def check_arguments(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float,
    ref_features: Tensor | None,
    ref_labels: Tensor | None,
    reduction: str,
    temperature: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The first five arguments in the dtypes that the kernels take, or an error that names the argument."""
    _checks.check_floating("features", features, 2, "(M, D)")
    if features.dim() != 2:
        raise ValueError(f"features must have shape (M, D), got {tuple(features.shape)}")
    labels = _checks.check_labels("labels", labels, features.shape[:1], features.device)
    if (ref_features is None) != (ref_labels is None):
        missing = "ref_labels" if ref_labels is None else "ref_features"
        raise ValueError(f"ref_features and ref_labels go together; {missing} is missing")
    if ref_features is None or ref_labels is None:
        (features,) = _checks.autocast(features)
    else:
        _checks.check_floating("ref_features", ref_features, 2, "(R, D)")
        if ref_features.dim() != 2:
            raise ValueError(f"ref_features must have shape (R, D), got {tuple(ref_features.shape)}")
        features, ref_features = _checks.autocast(features, ref_features)
        _checks.check_alike("ref_features", ref_features, "features", features)
        ref_labels = _checks.check_labels("ref_labels", ref_labels, ref_features.shape[:1], features.device)
    _checks.check_choice("reduction", reduction, REDUCTIONS)
    scale = _checks.scale_tensor(logit_scale, features, temperature)
    return features, labels, scale, ref_features, ref_labels


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::supcon_fwd")
    def _(features, labels, logit_scale, ref_features, ref_labels, normalize, cache):
        m, d = features.shape
        columns = m if ref_features is None else ref_features.shape[0]
        class_rows, saved = (m, d), (m, columns) if cache else (0,)
        if features.device.type == "cuda":
            # Labels meet the tiles there, similarities are computed again, and inverse norms are kept instead.
            rows = m if ref_features is None else m + columns
            class_rows, saved = (0,), (rows if normalize else 0,)
        return tuple(logit_scale.new_empty(size) for size in ((m,), (4, m), class_rows, saved))

    @torch.library.register_fake("cmx_fast::supcon_bwd")
    def _(grad, features, labels, logit_scale, ref_features, *rest):
        need_features, need_ref = rest[-2:]
        return (
            features.new_empty(features.shape if need_features else (0,)),
            features.new_empty(ref_features.shape if need_ref else (0,)),
            torch.empty_like(logit_scale),
        )

    def _save(ctx, inputs, output):
        features, labels, logit_scale, ref_features, ref_labels, normalize, _ = inputs
        ctx.save_for_backward(features, labels, logit_scale, ref_features, ref_labels, *output[1:])
        ctx.normalize = normalize

    def _backward(ctx, grad_loss, *_):
        features, labels, logit_scale, ref_features, ref_labels, *stats = ctx.saved_tensors
        need_features, need_scale, need_ref = (ctx.needs_input_grad[i] for i in (0, 2, 3))
        dfeatures, dref, dscale = torch.ops.cmx_fast.supcon_bwd(
            # .sum() sends a stride-0 gradient.
            grad_loss.contiguous(),
            features,
            labels,
            logit_scale,
            ref_features,
            ref_labels,
            ctx.normalize,
            *stats,
            need_features,
            need_ref,
        )
        return (
            dfeatures if need_features else None,
            None,
            dscale if need_scale else None,
            dref if need_ref else None,
            None,
            None,
            None,
        )

    def _refuse(ctx, *_):
        raise NotImplementedError("supcon has no second derivatives; use impl='reference' for them")

    class _SupCon(torch.autograd.Function):
        """The op with its autograd as eager code calls it: register_autograd costs 100 us of Python a call."""

        @staticmethod
        def forward(ctx, *inputs):
            with below_autograd():
                output = torch.ops.cmx_fast.supcon_fwd(*inputs)
            _save(ctx, inputs, output)
            return output[:1]

        backward = staticmethod(_backward)

    torch.library.register_autograd("cmx_fast::supcon_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::supcon_bwd", _refuse)
    register_triton("supcon_fwd", "supcon.launchers.supcon_fwd")
    register_triton("supcon_bwd", "supcon.launchers.supcon_bwd")
