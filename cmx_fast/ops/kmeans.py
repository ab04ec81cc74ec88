"""Nearest centroids, and all sums that a k-means step needs of the data, from one read of it."""

from __future__ import annotations

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import _checks
from cmx_fast.ops._implementations import HAS_EXTENSION, choose, operator, register_triton

METRICS = ("l2", "cosine")
# Limits of the CUDA C++ step: channels by the depth of the matrix unit's products, all of them at once.
CUDA_MOST_CENTROIDS, CUDA_MOST_FEATURES, CUDA_FEATURE_STEP = 64, 128, 16


def kmeans_assign(
    x: Tensor, centroids: Tensor, *, metric: str = "l2", normalize: bool = False, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""Nearest centroid of every vector, without the N x K matrix of distances.

    .. math:: z_n = \arg\min_k d(x_n, \mu_k), \qquad d_{l2} = \lVert x - \mu \rVert^2, \quad
              d_{cosine} = 1 - \frac{x^\top \mu}{\lVert x \rVert \lVert \mu \rVert}

    The distance is the sum of squared differences to the chosen centroid, so it keeps its digits where
    :math:`\lVert x \rVert` is large beside it. Ties go to the lowest index. Where squares would overflow or vanish in
    the working precision the vector is compared again with wider ones, so any finite vector gets the label that its
    numbers have; only the returned distance may be infinite or 0.

    Args:
        x: (N, D), or maps (B, D, H, W) read as they lie in memory (channels first or last); float32, float64,
            bfloat16 or float16.
        centroids: (K, D), any floating dtype; used in float32, or float64 for a float64 ``x``.
        metric: "l2" (Lloyd's, and the default) or "cosine", which divides rows and centroids by their norms.
        normalize: with "l2", divide every row of x, not the centroids, by max(norm, 1e-12) first (PiCIE's clustering
            of unit features around plain means).
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        labels int64 and distance float32 (float64 for float64 ``x``), both (N,) or (B, H, W). Labels lie in 0 to K - 1
        whatever the data. A vector with a NaN, and with "cosine" a zero vector on a GPU, gets label 0 and distance NaN;
        one with an infinity gets label 0 and an infinite distance, NaN as a unit vector.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, value or choice; on the CPU also centroids
            that are not finite, and zero vectors with "cosine". Before any work, but for zero vectors in ``x``.

    Nothing is differentiable. Memory: a tile. Cost: one N x K x D product; on CPUs with bfloat16 instructions the
    product is made in bfloat16, and the centroids within its proven error of the best are compared in float32.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import kmeans_assign
        >>> x, centroids = torch.tensor([[0.0, 1.0], [4.0, 4.0]]), torch.tensor([[0.0, 0.0], [4.0, 5.0]])
        >>> labels, distance = kmeans_assign(x, centroids)
        >>> labels.tolist(), distance.tolist()
        ([0, 1], [1.0, 1.0])
    """
    x, centroids, impl = _prepare(x, centroids, metric, normalize, impl)
    if impl == "cuda":
        raise ValueError("kmeans_assign: impl='cuda' has no kernel, only kmeans_step; use impl='triton'")
    if impl == "reference":
        return reference.kmeans_assign(x, centroids, metric=metric, normalize=normalize)
    shape = x.shape[:1] + x.shape[2:]
    labels, distance = torch.ops.cmx_fast.kmeans_assign(vectors(x), centroids, metric, normalize)
    _check_directions(metric, x, distance)
    return labels.reshape(shape), distance.reshape(shape)


def kmeans_step(
    x: Tensor,
    centroids: Tensor,
    *,
    weight: Tensor | None = None,
    metric: str = "l2",
    normalize: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One pass of Lloyd's algorithm over the data: labels, and the sums that the next centroids are made from.

    .. math:: z_n = \arg\min_k d(x_n, \mu_k), \quad S_k = \sum_{z_n = k} w_n x_n, \quad
              c_k = \sum_{z_n = k} w_n, \quad I = \sum_n w_n d(x_n, \mu_{z_n})

    ``x`` is read once for all of it. Counts are integers and sums are carried in float64, so neither stops growing
    with the number of points; both come out the same for any number of threads.

    Args:
        x, centroids, metric, normalize: as for :func:`kmeans_assign`. The sums are of the rows as the metric sees
            them: unit rows with "cosine" or ``normalize``.
        weight: (N,) or (B, H, W) non-negative float32 (float64 for float64 ``x``) sample weights; default 1.
        impl: "auto", "reference", "cpp" (CPU), "triton" or "cuda" (CUDA; the latter in CUDA C++, for maps (B, D, H, W)
            with neighbouring positions next to each other, bfloat16 or float16, D a multiple of 16 up to 128, K up to
            64; it has never run on a GPU).

    Returns:
        labels int64 as for :func:`kmeans_assign`; sums (K, D) float32 (float64 for float64 ``x``), infinite where they
        overflow that; counts (K,), int64 numbers of points, or float64 sums of weights where ``weight`` is given;
        inertia, a float64 0-d tensor, on a GPU infinite where float32 overflows. A vector that is not finite counts for
        cluster 0, whose sums it makes NaN or infinite, and the inertia with them. The next centroids are
        ``sums / counts`` where counts are not 0.

    Raises:
        TypeError, ValueError: as :func:`kmeans_assign`, and what "cuda" does not take; on the CPU also a negative or
            NaN weight.

    Memory: partial sums of at most 32 MiB, or twice K x D float64; on a GPU K x D float32 per 4096 vectors. Cost: one
    N x K x D product, as above.

    Example:
        >>> import torch
        >>> from cmx_fast.ops import kmeans_step
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
        >>> labels, sums, counts, inertia = kmeans_step(x, torch.tensor([[1.0, 0.0], [9.0, 8.0]]))
        >>> labels.tolist(), (sums / counts[:, None]).tolist(), inertia.item()
        ([0, 0, 1], [[1.0, 0.0], [9.0, 9.0]], 3.0)
    """
    x, centroids, impl = _prepare(x, centroids, metric, normalize, impl)
    shape = x.shape[:1] + x.shape[2:]
    if weight is not None:
        _check_weight(weight, shape, centroids)
    if impl == "reference":
        return reference.kmeans_step(x, centroids, weight=weight, metric=metric, normalize=normalize)
    flat = None if weight is None else weight.detach().reshape(x.shape[0], -1)
    flat = flat.reshape(1, -1) if flat is not None and x.dim() == 2 else flat
    if impl == "cuda":
        _check_for_cuda(x, centroids)
    labels, sums, counts, inertia = operator("kmeans", "step", impl)(
        vectors(x), centroids, flat, metric, normalize
    )
    _check_directions(metric, x, inertia)
    return labels.reshape(shape), sums, counts, inertia


def vectors(x: Tensor) -> Tensor:
    """Vectors (B, P, D) for the registered ops, from (N, D) or (B, D, H, W): a view unless H and W don't join."""
    return x[None] if x.dim() == 2 else x.flatten(2).transpose(1, 2)


def check_vectors(x: Tensor, centroids: Tensor) -> None:
    """Require vectors (N, D) or maps (B, D, H, W), and centroids (K, D) beside them, finite where that can be seen."""
    _checks.check_floating("x", x, 2, "(N, D) or (B, D, H, W)")
    _checks.check_floating("centroids", centroids, 2, "(K, D)")
    if x.dim() not in (2, 4):
        raise ValueError(f"x must have shape (N, D) or (B, D, H, W), got {tuple(x.shape)}")
    if centroids.dim() != 2 or centroids.shape[0] == 0:
        raise ValueError(f"centroids must have shape (K, D) with K at least 1, got {tuple(centroids.shape)}")
    if x.shape[1] != centroids.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x has {x.shape[1]} features and centroids have {centroids.shape[1]}; they must be equal and not 0"
        )
    if x.device != centroids.device:
        raise ValueError(f"x is on {x.device} but centroids are on {centroids.device}; move one of them")
    if _checks.readable(centroids) and not centroids.isfinite().all():
        bad = (~centroids.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"centroids must be finite; rows {bad[:10]} are not")


def _prepare(
    x: Tensor, centroids: Tensor, metric: str, normalize: bool, impl: str
) -> tuple[Tensor, Tensor, str]:
    check_vectors(x, centroids)
    _checks.check_flags(normalize=normalize)
    _checks.check_choice("metric", metric, METRICS)
    impl = choose("kmeans", impl, x.device.type, x.dtype, x.shape[1])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    centroids = centroids.detach().to(wide)
    if metric == "cosine" and _checks.readable(centroids):
        zero = (centroids == 0).all(1).nonzero().flatten().tolist()
        if zero:
            raise ValueError(
                f"centroids {zero[:10]} are zero vectors, which have no cosine; drop or replace them"
            )
    return x.detach(), centroids, impl


def _check_for_cuda(x: Tensor, centroids: Tensor) -> None:
    def refuse(what: str) -> None:
        raise ValueError(f"kmeans_step: impl='cuda' takes {what}; use impl='triton'")

    if x.dtype not in (torch.bfloat16, torch.float16):
        refuse(f"x in bfloat16 or float16, not {x.dtype}")
    if x.dim() != 4:
        refuse(f"maps (B, D, H, W), not x of shape {tuple(x.shape)}")
    if x.shape[1] % CUDA_FEATURE_STEP or x.shape[1] > CUDA_MOST_FEATURES:
        refuse(
            f"x with a multiple of {CUDA_FEATURE_STEP} features up to {CUDA_MOST_FEATURES}, not {x.shape[1]}"
        )
    if centroids.shape[0] > CUDA_MOST_CENTROIDS:
        refuse(f"at most {CUDA_MOST_CENTROIDS} centroids, not {centroids.shape[0]}")
    flat = vectors(x)
    if flat.shape[1] > 1 and flat.stride(1) != 1:
        refuse(
            f"maps with neighbouring positions next to each other, not x with strides {x.stride()}: "
            "x.contiguous() has them"
        )


def _check_weight(weight: Tensor, shape: torch.Size, centroids: Tensor) -> None:
    if not isinstance(weight, Tensor) or weight.dtype != centroids.dtype:
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a {centroids.dtype} tensor, got {kind}")
    if weight.shape != shape:
        raise ValueError(f"weight must have one number per vector, {tuple(shape)}, got {tuple(weight.shape)}")
    if weight.device != centroids.device:
        raise ValueError(f"weight is on {weight.device} but x is on {centroids.device}; move one of them")
    if _checks.readable(weight) and not (weight >= 0).all():
        raise ValueError(f"weight must not be negative or NaN; its least value is {weight.min().item()}")


def _check_directions(metric: str, x: Tensor, result: Tensor) -> None:
    """Name the zero vectors behind a NaN distance; the pass itself is the only read when there are none."""
    if metric == "cosine" and _checks.readable(result) and result.isnan().any():
        rows = reference.feature_rows(x)
        zero = (rows == 0).all(1).nonzero().flatten().tolist()
        if zero:
            raise ValueError(
                f"{len(zero)} of {len(rows)} vectors of x are zero and have no cosine; the first are {zero[:10]}"
            )


if HAS_EXTENSION:

    @torch.library.register_fake("cmx_fast::kmeans_assign")
    def _(x, centroids, metric, normalize):
        return x.new_empty(x.shape[:2], dtype=torch.int64), centroids.new_empty(x.shape[:2])

    def _step(x, centroids, weight, metric, normalize):
        counted = torch.int64 if weight is None else torch.float64
        return (
            x.new_empty(x.shape[:2], dtype=torch.int64),
            torch.empty_like(centroids, memory_format=torch.contiguous_format),
            centroids.new_empty(centroids.shape[0], dtype=counted),
            centroids.new_empty((), dtype=torch.float64),
        )

    torch.library.register_fake("cmx_fast::kmeans_step", _step)
    torch.library.register_fake("cmx_fast::kmeans_cuda_step", _step)
    register_triton("kmeans_assign", "kmeans.launchers.kmeans_assign")
    register_triton("kmeans_step", "kmeans.launchers.kmeans_step")
