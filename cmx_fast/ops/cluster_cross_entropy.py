"""Cross-entropy of pixels against frozen centroids, labels and loss from one read of the features."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, register_triton
from cmx_fast.ops.kmeans import check_vectors, vectors


def cluster_cross_entropy(
    x: Tensor,
    centroids: Tensor,
    *,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    normalize: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""PiCIE's clustering loss without the B x K x H x W logits.

    .. math:: L = \frac{\sum_n w_{z_n} \left(\log \sum_k e^{x_n^\top \mu_k} - x_n^\top \mu_{z_n}\right)}
                       {\sum_n w_{z_n}}

    The classifier is the centroids, without bias or temperature, and gets no gradient (PiCIE, Cho et al. 2021, its
    reference code; the L_clust of C2L's eq. 7).

    Args:
        x: (N, D), or maps (B, D, H, W) read as they lie; float32, float64, bfloat16 or float16. Differentiable.
        centroids: (K, D), any floating dtype; used in float32, or float64 for a float64 ``x``.
        target: (N,) or (B, H, W) int64 clusters z; default the nearest centroid of each vector, as
            :func:`cmx_fast.ops.kmeans_assign` finds it at any magnitude, made in the same read.
        weight: (K,) non-negative weight of each cluster (PiCIE's code: its share of the points); default 1.
        normalize: divide every row of x by max(norm, 1e-12) first.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        loss, a float32 0-d tensor (float64 for float64 ``x``), and the labels that it used, shaped like ``target``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value, before any work; a target out of
            range only on the CPU (on a GPU it gives NaN).
        NotImplementedError: second derivatives.

    Memory: a tile, and two floats per vector for the backward pass. Cost: one N x K x D product forward, two backward.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import cluster_cross_entropy
        >>> maps = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss, labels = cluster_cross_entropy(maps, torch.eye(3, 16), normalize=True)
        >>> loss.backward()
        >>> labels.shape
        torch.Size([2, 5, 5])
    """
    check_vectors(x, centroids)
    _checks.check_flags(normalize=normalize)
    impl = choose("cluster_cross_entropy", impl, x.device.type, x.dtype, x.shape[1])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    centroids = centroids.detach().to(wide)
    shape = x.shape[:1] + x.shape[2:]
    if target is not None:
        _checks.check_index("target", target, shape, x.device)
        if _checks.readable(target) and target.numel():
            low, high = target.min().item(), target.max().item()
            if low < 0 or high >= centroids.shape[0]:
                raise ValueError(f"target must lie in 0 to {centroids.shape[0] - 1}, found {low} to {high}")
    if weight is not None:
        _checks.check_floating("weight", weight, 1, "(K,)")
        if weight.shape != (centroids.shape[0],):
            raise ValueError(f"weight must have shape ({centroids.shape[0]},), got {tuple(weight.shape)}")
        if _checks.readable(weight) and not (weight >= 0).all():
            raise ValueError(f"weight must not be negative or NaN; its least value is {weight.min().item()}")
        weight = weight.detach().to(wide)
    if impl == "reference":
        return reference.cluster_cross_entropy(
            x, centroids, target=target, weight=weight, normalize=normalize
        )
    rows = vectors(x)
    flat = None if target is None else target.reshape(rows.shape[:2])
    losses, _, labels = torch.ops.cmx_fast.cluster_cross_entropy_fwd(rows, centroids, flat, normalize)
    # Sums of millions of pixels in float64.
    if weight is None:
        loss = losses.mean(dtype=torch.float64)
    else:
        # On a GPU a target out of range has a loss of NaN, and must not be followed to a weight that is not there.
        per_row = weight[labels.clamp(0, weight.shape[0] - 1)]
        loss = (losses * per_row).sum(dtype=torch.float64) / per_row.sum(dtype=torch.float64)
    return loss.to(wide), labels.reshape(shape)


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::cluster_cross_entropy_fwd")
    def _(x, centroids, target, normalize):
        return (
            centroids.new_empty(x.shape[:2]),
            centroids.new_empty(2, *x.shape[:2]),
            x.new_empty(x.shape[:2], dtype=torch.int64),
        )

    @torch.library.register_fake("cmx_fast::cluster_cross_entropy_bwd")
    def _(grad, x, centroids, labels, softmax, normalize):
        return torch.empty_like(x)

    def _save(ctx, inputs, output):
        x, centroids, _, normalize = inputs
        ctx.save_for_backward(x, centroids, output[2], output[1])
        ctx.set_materialize_grads(False)
        ctx.normalize = normalize

    def _backward(ctx, grad_losses, *_):
        if grad_losses is None:
            return None, None, None, None
        # .mean() sends a stride-0 gradient.
        saved = ctx.saved_tensors
        dx = torch.ops.cmx_fast.cluster_cross_entropy_bwd(grad_losses.contiguous(), *saved, ctx.normalize)
        return dx, None, None, None

    def _refuse(ctx, *_):
        raise NotImplementedError(
            "cluster_cross_entropy has no second derivatives; use impl='reference' for them"
        )

    torch.library.register_autograd("cmx_fast::cluster_cross_entropy_fwd", _backward, setup_context=_save)
    torch.library.register_autograd("cmx_fast::cluster_cross_entropy_bwd", _refuse)
    register_triton("cluster_cross_entropy_fwd", "cluster_cross_entropy.cluster_cross_entropy_fwd")
    register_triton("cluster_cross_entropy_bwd", "cluster_cross_entropy.cluster_cross_entropy_bwd")
