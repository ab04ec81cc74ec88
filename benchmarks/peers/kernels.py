"""Packages with GPU kernels of their own, each at its best settings and imported where it is used.

The docstrings name what each leaves out or does differently; none is changed. They run on CUDA tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .packages import load

#: The bias that SigLIP starts from.
SIGLIP_BIAS = -10.0


def memeff_clip(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """memeff's symmetric loss of unit features; with ``stable=False`` its gradient is the loss's, not a multiple.

    The temperature is a number and gets no gradient.
    """
    loss = load("memeff").MemoryEfficientCLIPLoss(
        temperature=temperature, normalized_inputs=True, stable=False
    )
    return lambda image, text: loss(image, text)


def inf_cl_clip(image: Tensor, text: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """Inf-CL's loss, one direction a call, in heads as wide as it takes.

    Its own ``scale`` argument asks for a process group in backward, so the features are multiplied before; in float32,
    as it takes them anyway.
    """
    one_way = load("inf_cl").cal_inf_loss
    head = math.gcd(image.shape[1], 256)

    def loss() -> Tensor:
        return (
            one_way(scale * image.float(), text, head_dim=head)
            + one_way(scale * text.float(), image, head_dim=head)
        ) / 2

    return loss


def cce_clip(image: Tensor, text: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """cut-cross-entropy of each side against the other as classifier.

    Its default leaves out tiles of small probabilities; in a large batch all of them are, so that is off.
    """
    one_way = load("cut_cross_entropy").linear_cross_entropy
    own = torch.arange(len(image), device=image.device)

    def loss() -> Tensor:
        return (
            one_way(scale * image, text, own, filter_eps=None)
            + one_way(scale * text, image, own, filter_eps=None)
        ) / 2

    return loss


def siglip(image: Tensor, text: Tensor, scale: Tensor) -> Callable[[], Tensor]:
    """siglip-kernel's loss: a sigmoid per pair, so another loss, but the fastest published one over all pairs."""
    fused = load("siglip_kernel").fused_siglip_loss
    log_scale = scale.detach().log().requires_grad_()
    bias = torch.full_like(log_scale, SIGLIP_BIAS).detach().requires_grad_()
    return lambda: fused(image, text, log_scale, bias)


def flash_kmeans_from_maps(maps: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """One iteration of flash-kmeans from maps (B, D, H, W), as its users call it: their rows copied, squares summed."""
    cluster = load("flash_kmeans").batch_kmeans_Euclid

    def iterate() -> Tensor:
        rows = maps.movedim(1, -1).reshape(1, -1, maps.shape[1])
        _, new, _ = cluster(rows, len(centroids), max_iters=1, init_centroids=centroids[None])
        return new[0]

    return iterate


def flash_kmeans_of_rows(rows: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """The kernels alone of an iteration of flash-kmeans, with rows (N, D) and their squares ready."""
    assign = load("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    update = load("flash_kmeans").triton_centroid_update_sorted_euclid
    x, start = rows[None].contiguous(), centroids[None]
    squares = x.float().square().sum(2)
    return lambda: update(x, assign(x, start, squares), start)[0]


def faiss_gpu_iteration(rows: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """Nearest centroids by faiss on the GPU, where the rows (N, D) are, and PyTorch's sums of them.

    faiss's own clustering would take the rows through the host, as PiCIE's code does.
    """
    faiss = load("faiss")
    load("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources()

    def iterate() -> Tensor:
        labels = faiss.knn_gpu(resources, rows, centroids, 1)[1][:, 0]
        sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
        counts = torch.bincount(labels, minlength=len(centroids))
        return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centroids)

    return iterate


def cuml_iteration(rows: Tensor, centroids: Tensor) -> Callable[[], Tensor]:
    """cuML's ``KMeans`` for one iteration; it also labels the rows and adds up their distances at the end."""
    kmeans = load("cuml.cluster").KMeans
    cupy = load("cupy")
    x, start = cupy.asarray(rows), cupy.asarray(centroids)

    def iterate() -> Tensor:
        fitted = kmeans(n_clusters=len(start), init=start, n_init=1, max_iter=1).fit(x)
        return torch.as_tensor(fitted.cluster_centers_, device=rows.device)

    return iterate
