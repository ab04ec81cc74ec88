"""K-means steps and the loss against frozen centroids: by scikit-learn, faiss and PiCIE's code, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops import cluster_cross_entropy, kmeans_step
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA

from ..harness.problems import Problem, cluster_problem
from ..harness.provider import OURS, Loss, Provider, formula
from ..peers import formulas, kernels, packages

MAP_SIDE = 80  # of the maps of a 320-pixel picture


def problem(task: str, n: int, d: int, clusters: int) -> Problem:
    """n rows for a step; else maps of 80 x 80, or one smaller map."""
    if task == "step":
        return cluster_problem(n, d, clusters)
    side = min(MAP_SIDE, math.isqrt(n))
    made = cluster_problem(n // side**2 * side**2, d, clusters, side)
    return made if task == "pixels" else Problem(made.tensors, ())


def _means(sums: Tensor, counts: Tensor, centroids: Tensor) -> Tensor:
    return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centroids)


def _step(p: Problem) -> Tensor:
    _, sums, counts, _ = reference.kmeans_step(p["x"], p["centroids"])
    return _means(sums, counts, p["centroids"])


def _our_step(p: Problem, impl: str = "auto") -> Loss:
    def step() -> Tensor:
        _, sums, counts, _ = kmeans_step(p["x"], p["centroids"], impl=impl)
        return _means(sums, counts, p["centroids"])

    return step


def _rows(p: Problem) -> Tensor:
    """The maps' pixels as contiguous rows."""
    return p["x"].movedim(1, -1).reshape(-1, p["x"].shape[1]).contiguous()


def _of_rows(iteration: Callable[[Tensor, Tensor], Loss]) -> Callable[[Problem], Loss]:
    """An iteration that takes rows, whose copy is made once and not measured."""
    return lambda p: iteration(_rows(p), p["centroids"])


def _chunked(rows: Tensor, centroids: Tensor) -> Loss:
    return lambda: formulas.lloyd_iteration(rows, centroids)


def _seen(p: Problem) -> Tensor:
    """The points that each cluster has had so far: half of those to come."""
    x, centroids = p["x"], p["centroids"]
    return torch.full((len(centroids),), x.numel() // x.shape[1] // len(centroids) // 2)


def _minibatch(p: Problem, step: Callable[..., tuple[Tensor, ...]]) -> Tensor:
    _, sums, counts, _ = step(p["x"], p["centroids"], normalize=True)
    total = _seen(p) + counts
    return p["centroids"] + (sums - counts[:, None] * p["centroids"]) / total[:, None]


def _our_pixels(p: Problem) -> Loss:
    return lambda: cluster_cross_entropy(p["x"], p["centroids"], target=p["target"], normalize=True)[0]


def _pixels(p: Problem) -> Tensor:
    return formulas.pixel_cross_entropy(p["x"], p["centroids"], p["target"])


IN_CUDA = f"{OURS} in CUDA C++"
# Beside Triton's, where there is a GPU to run it.
ON_DEVICE = (OURS, IN_CUDA) if "kmeans" in COMPILED_FOR_CUDA and torch.cuda.is_available() else (OURS,)
PROVIDERS: dict[str, dict[str, Provider]] = {
    "step": {
        "scikit-learn's Lloyd iteration": Provider(
            lambda p: packages.sklearn_lloyd_iteration(p["x"], p["centroids"]), _step, package="scikit-learn"
        ),
        "faiss": Provider(
            lambda p: packages.faiss_iteration(p["x"], p["centroids"]), _step, package="faiss-cpu"
        ),
        "PyTorch, 4096 rows at a time": Provider(
            lambda p: lambda: formulas.lloyd_iteration(p["x"], p["centroids"]), _step
        ),
        OURS: Provider(_our_step, _step),
    },
    # A step from maps. Contenders that only take rows get them for nothing where their names say so.
    "step of maps": {
        "PyTorch, 4096 rows at a time": Provider(_of_rows(_chunked), _step),
        "flash-kmeans": Provider(
            lambda p: kernels.flash_kmeans_from_maps(p["x"], p["centroids"]), _step, package="flash-kmeans"
        ),
        "flash-kmeans, rows ready": Provider(
            _of_rows(kernels.flash_kmeans_of_rows), _step, package="flash-kmeans"
        ),
        "faiss-gpu, rows ready": Provider(
            _of_rows(kernels.faiss_gpu_iteration), _step, dtype=torch.float32, package="faiss-gpu"
        ),
        "cuML, rows ready": Provider(
            _of_rows(kernels.cuml_iteration), _step, dtype=torch.float32, package="cuml-cu13"
        ),
        OURS: Provider(_our_step, _step),
        IN_CUDA: Provider(lambda p: _our_step(p, "cuda"), _step),
    },
    "maps": {
        "PiCIE's way": Provider(
            lambda p: lambda: packages.picie_update(p["x"], p["centroids"], _seen(p)),
            lambda p: _minibatch(p, reference.kmeans_step),
            package="faiss-cpu",
        ),
        "PiCIE's way, PyTorch's search": Provider(
            lambda p: lambda: packages.picie_update(p["x"], p["centroids"], _seen(p), formulas.nearest),
            lambda p: _minibatch(p, reference.kmeans_step),
        ),
        OURS: Provider(
            lambda p: lambda: _minibatch(p, kmeans_step), lambda p: _minibatch(p, reference.kmeans_step)
        ),
    },
    "pixels": {
        "PiCIE's way": formula(_pixels),
        OURS: Provider(_our_pixels, _pixels),
    },
}
