"""Pyramid correlation filtering: where in a sample's features a filter from the other modality answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, operator, register_triton

NORMS = ("cosine", "softmax", "none")
MOST_LEVELS = 3


def pyramid_correlation(
    features: Tensor, filters: Tensor, *, levels: int = 2, norm: str = "cosine", impl: str = "auto"
) -> Tensor:
    r"""Response of each sample's filter at every position, at several scales, from one read of the features.

    .. math:: s_p = \mathrm{norm}\left(\frac1L \sum_{l=0}^{L-1} \mathrm{up}_l\left[\langle \kappa, g^l \rangle\right]_p
              \right)

    CMAC's eq. 4 with the pyramid of its figure 3. :math:`g^l` are the means of the features over windows of
    :math:`2^l \times 2^l` positions within a frame (partial ones at the far edges), :math:`\mathrm{up}_l` enlarges
    bilinearly by :math:`2^l`. Time is not pooled (the paper leaves it open).

    Args:
        features: (B, C, H, W) or (B, C, T, H, W), float32, float64, bfloat16 or float16. Differentiable.
        filters: (B, C), any floating dtype; used in float32, or float64 for float64 features. Differentiable.
        levels: L, 1 to 3. Default 2: the paper's.
        norm: "cosine" (the paper's): products are cosines, and :math:`(1 + x) / 2` maps to [0, 1] (the mapping is
            ours); a vector no longer than 1e-12 has a cosine of 0 and gets no gradient. "softmax": over all positions
            of a sample, of plain products. "none": plain products.
        impl: "auto", "reference", "cpp" (CPU), "triton" or "cuda" (CUDA; the latter in CUDA C++).

    Returns:
        (B, H, W) or (B, T, H, W) float32 (float64 for float64 features). NaN features give NaN around them.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value, before any work.
        NotImplementedError: second derivatives.

    Memory: maps without channels; forward some 17 bytes per position and 128 channels. Cost: one read of the features
    forward, one read and one write backward. On the CPU features in another layout than contiguous are copied first.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import pyramid_correlation
        >>> video, audio = torch.randn(2, 16, 4, 8, 8, requires_grad=True), torch.randn(2, 16)
        >>> attention = pyramid_correlation(video, audio)
        >>> attention.shape
        torch.Size([2, 4, 8, 8])
    """
    features, filters, impl = _check(features, filters, levels, norm, impl)
    if impl == "reference":
        return reference.pyramid_correlation(features, filters, levels=levels, norm=norm)
    forward = operator("pyramid_correlation", "fwd", impl)
    return forward(_volumes(features), filters, levels, norm)[0].reshape(
        features.shape[:1] + features.shape[2:]
    )


def attention_consistency(
    features: Tensor,
    filters: Tensor,
    prediction: Tensor,
    *,
    levels: int = 2,
    norm: str = "cosine",
    teach_features: bool = False,
    return_map: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Squared error of a predicted attention map against the cross-modal one, in the pass that makes that.

    .. math:: L_{ac} = \frac1B \sum_b \lVert s_b - \hat s_b \rVert_2^2, \qquad s = \mathrm{pyramid\_correlation}(v,
              \kappa)

    CMAC's eq. 6: the sum over positions, the mean over samples (the mean is ours; eq. 8 leaves it open).

    Args:
        features, filters, levels, norm, impl: as for :func:`pyramid_correlation`.
        prediction: :math:`\hat s`, (B, H, W) or (B, T, H, W), after the sigmoid; any floating dtype. Differentiable.
        teach_features: let the map's own gradient flow into features and filters. Default no: the paper calls the map
            a pseudo-label.
        return_map: also return s, without gradient. Default no.

    Returns:
        The loss, a float32 0-d tensor (float64 for float64 features); with ``return_map`` also s, shaped like
        ``prediction``.

    Raises:
        As :func:`pyramid_correlation`, and for a prediction of another shape.

    Memory and cost: as :func:`pyramid_correlation`, and one map for the backward pass. Without ``teach_features``
    the features are read once altogether.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import attention_consistency
        >>> attention_consistency(torch.ones(2, 8, 5, 5), torch.ones(2, 8), torch.full((2, 5, 5), 0.9))
        tensor(0.2500)
    """
    features, filters, impl = _check(features, filters, levels, norm, impl)
    _checks.check_floating("prediction", prediction, 3, "(B, H, W) or (B, T, H, W)")
    if prediction.shape != features.shape[:1] + features.shape[2:]:
        raise ValueError(
            f"prediction must have shape {tuple(features.shape[:1] + features.shape[2:])}, the features' without "
            f"channels; got {tuple(prediction.shape)}"
        )
    if prediction.device != features.device:
        raise ValueError(
            f"prediction is on {prediction.device} but features are on {features.device}; move one of them"
        )
    options: dict[str, Any] = {"levels": levels, "norm": norm}
    if impl == "reference":
        options |= {"teach_features": teach_features, "return_map": return_map}
        return reference.attention_consistency(features, filters, prediction, **options)
    if not teach_features:
        features, filters = features.detach(), filters.detach()
    volumes = _volumes(features)
    volume_prediction = prediction.reshape(volumes.shape[:1] + volumes.shape[2:])
    if impl == "cuda":
        volume_prediction = volume_prediction.float()
    losses, difference, *_ = operator("attention_consistency", "fwd", impl)(
        volumes, filters, volume_prediction, levels, norm
    )
    loss = losses.mean()
    if not return_map:
        return loss
    return loss, difference.detach().reshape(prediction.shape) + prediction.detach()


def _check(
    features: Tensor, filters: Tensor, levels: int, norm: str, impl: str
) -> tuple[Tensor, Tensor, str]:
    """The features, the filters in the accumulation dtype, and the implementation to run."""
    _checks.check_floating("features", features, 4, "(B, C, H, W) or (B, C, T, H, W)")
    if features.dim() > 5 or 0 in features.shape[1:]:
        raise ValueError(
            f"features must have shape (B, C, H, W) or (B, C, T, H, W), only B may be 0; got {tuple(features.shape)}"
        )
    _checks.check_floating("filters", filters, 2, "(B, C)")
    if filters.shape != features.shape[:2]:
        raise ValueError(
            f"filters must have shape {tuple(features.shape[:2])}, one per sample; got {tuple(filters.shape)}"
        )
    if filters.device != features.device:
        raise ValueError(
            f"filters are on {filters.device} but features are on {features.device}; move one of them"
        )
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must be 1 to {MOST_LEVELS}, got {levels!r}")
    _checks.check_choice("norm", norm, NORMS)
    impl = choose("pyramid_correlation", impl, features.device.type, features.dtype, features.shape[1])
    return features, filters.to(torch.promote_types(features.dtype, torch.float32)), impl


def _volumes(features: Tensor) -> Tensor:
    """Features as (B, C, T, H, W), contiguous for the CPU kernel."""
    volumes = features.unsqueeze(2) if features.dim() == 4 else features
    return volumes.contiguous() if volumes.device.type == "cpu" else volumes


if HAS_EXTENSION:

    def _cells(features, levels):
        t, h, w = features.shape[2:]
        return t * sum(-(-h // 2**level) * -(-w // 2**level) for level in range(levels))

    def _maps(features, filters, levels, norm):
        batch = features.shape[0]
        cells = _cells(features, levels) if norm == "cosine" else 0
        return (
            filters.new_empty(batch, *features.shape[2:]),
            filters.new_empty(batch, cells),
            filters.new_empty(batch, cells),
        )

    def _save(ctx, inputs, output):
        features, filters, ctx.levels, ctx.norm = inputs
        ctx.save_for_backward(features, filters, *output)
        ctx.set_materialize_grads(False)

    def _save_consistency(ctx, inputs, output):
        features, filters, prediction, ctx.levels, ctx.norm = inputs
        # The map is difference + prediction; what pulls on features needs it only behind a softmax.
        teach = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ctx.save_for_backward(output[1], prediction, *((features, filters, *output[2:]) if teach else ()))
        ctx.set_materialize_grads(False)

    def _refuse(ctx, *_):
        raise NotImplementedError(
            "pyramid correlation has no second derivatives; use impl='reference' for them"
        )

    def _register(own: str) -> None:
        """Register fakes and gradients of one set of ops of csrc/pyramid_correlation.cpp, with `own` in their names."""
        forward, backward = (f"cmx_fast::pyramid_correlation{own}_{way}" for way in ("fwd", "bwd"))
        consistency = f"cmx_fast::attention_consistency{own}_fwd"
        run_backward = getattr(torch.ops.cmx_fast, backward.removeprefix("cmx_fast::"))

        @torch.library.register_fake(forward)
        def _(features, filters, levels, norm):
            return _maps(features, filters, levels, norm)

        @torch.library.register_fake(backward)
        def _(grad_map, features, filters, attention, cosines, inverse_norms, levels, norm):
            return torch.empty_like(features), torch.empty_like(filters)

        @torch.library.register_fake(consistency)
        def _(features, filters, prediction, levels, norm):
            return filters.new_empty(features.shape[0]), *_maps(features, filters, levels, norm)

        def _backward(ctx, grad_map, *_):
            if grad_map is None:
                return None, None, None, None
            # .sum() sends a stride-0 gradient.
            gradients = run_backward(grad_map.contiguous(), *ctx.saved_tensors, ctx.levels, ctx.norm)
            return *gradients, None, None

        def _consistency_backward(ctx, grad_losses, grad_difference, *_):
            if grad_losses is None and grad_difference is None:
                return None, None, None, None, None
            difference, prediction, *saved = ctx.saved_tensors
            grad_map = 0 if grad_losses is None else 2 * grad_losses.reshape(-1, 1, 1, 1) * difference
            if grad_difference is not None:
                # From the second derivative by the prediction: the first holds the difference.
                grad_map = (grad_map + grad_difference).contiguous()
            dfeatures = dfilters = None
            if saved:
                features, filters, *kept = saved
                dfeatures, dfilters = run_backward(
                    grad_map, features, filters, difference + prediction, *kept, ctx.levels, ctx.norm
                )
            return dfeatures, dfilters, (-grad_map).to(prediction.dtype), None, None

        torch.library.register_autograd(forward, _backward, setup_context=_save)
        torch.library.register_autograd(consistency, _consistency_backward, setup_context=_save_consistency)
        torch.library.register_autograd(backward, _refuse)

    _register("")
    _register("_cuda")
    for _name in ("pyramid_correlation_fwd", "pyramid_correlation_bwd", "attention_consistency_fwd"):
        register_triton(_name, f"pyramid_correlation.launchers.{_name}")
