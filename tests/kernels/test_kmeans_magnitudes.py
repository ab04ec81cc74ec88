"""The k-means kernels where squares overflow or vanish in float32, and on vectors and centroids that are not finite."""

from __future__ import annotations

import emulated_kmeans
import pytest
import torch

from cmx_fast import reference
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA, operator

pytest.importorskip("triton")
from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd
from cmx_fast.kernels.kmeans.launchers import kmeans_assign, kmeans_step

pytestmark = [
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"),
]
L2, UNIT, COSINE = ("l2", False), ("l2", True), ("cosine", False)
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def cuda_step(device):
    """The function behind the operator in CUDA C++."""
    if device.type == "cpu":
        return emulated_kmeans.kernels().kmeans_step
    if "kmeans" not in COMPILED_FOR_CUDA:
        pytest.skip("the extension was built without its CUDA files")
    return operator("kmeans", "step", "cuda")


def excess(labels, x, centroids, metric, normalize):
    """How much farther than the nearest centroid the chosen one is at most, relative."""
    rows, centers = x.reshape(-1, x.shape[2]).double(), centroids.double()
    if metric == "cosine":
        rows, centers = (reference.unit_rows(t, 0.0) for t in (rows, centers))
    elif normalize:
        rows = reference.unit_rows(rows, 1e-12)
    distances = torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
    least = distances.amin(1)
    return ((distances.gather(1, labels.reshape(-1, 1))[:, 0] - least) / least.clamp_min(1e-300)).max().item()


def check(step, device, x, centroids, way):
    labels, sums, counts, inertia = (t.cpu() for t in step(x.to(device), centroids.to(device), None, *way))
    assert labels.min() >= 0 and labels.max() < len(centroids)
    assert excess(labels, x, centroids, *way) < 1e-5
    assert counts.tolist() == torch.bincount(labels.flatten(), minlength=len(centroids)).tolist()
    rows = x.reshape(-1, x.shape[2]).double()
    if way != L2:
        rows = reference.unit_rows(rows, 1e-12 if way == UNIT else 0.0)
    expected = torch.zeros(sums.shape, dtype=torch.float64).index_add_(0, labels.flatten(), rows)
    subnormal = x.shape[1] * torch.finfo(torch.float32).tiny
    assert (sums.double() - expected).norm() <= 1e-5 * expected.norm() + subnormal
    truth = reference.kmeans_step(rows, centroids.double(), metric=way[0])[3].item()
    # Added in float32 first, by programs of some vectors each.
    assert inertia.item() == pytest.approx(truth, rel=1e-5) or (inertia == INFINITY and truth > 1e38)
    return labels


@pytest.mark.parametrize("scale", [1e-32, 1e18, 1e35])
@pytest.mark.parametrize(
    ("dtype", "d", "k", "way"),
    [
        (torch.float32, 16, 9, L2),
        (torch.float32, 33, 70, COSINE),
        (torch.bfloat16, 32, 9, UNIT),
        (torch.bfloat16, 40, 70, L2),
        (torch.bfloat16, 32, 9, COSINE),
    ],
)
def test_labels_and_sums_at_any_magnitude(device, dtype, d, k, way, scale):
    x, centroids = (scale * torch.randn(1, 80, d)).to(dtype), torch.randn(k, d)
    centroids *= 1.0 if way == UNIT else scale
    if way == UNIT and scale < 1:
        return check_tiny(device, x, centroids)
    labels = check(kmeans_step, device, x, centroids, way)
    again, distance = (t.cpu() for t in kmeans_assign(x.to(device), centroids.to(device), *way))
    assert again.equal(labels)
    expected = reference.kmeans_assign(x[0].double(), centroids.double(), metric=way[0], normalize=way[1])[1]
    torch.testing.assert_close(distance[0], expected.float(), rtol=1e-5, atol=1e-6 if way != L2 else 1e-43)


def check_tiny(device, x, centroids):
    """Below the least norm vectors are multiplied by 1e12, and stay small."""
    distance = kmeans_assign(x.to(device), centroids.to(device), *UNIT)[1].cpu()
    expected = reference.kmeans_assign(x[0].double(), centroids.double(), normalize=True)[1]
    torch.testing.assert_close(distance[0], expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-32, 1e18, 1e35])
@pytest.mark.parametrize("way", [L2, UNIT, COSINE])
@pytest.mark.parametrize("k", [5, 40])
def test_the_same_in_cuda(device, cuda_step, k, way, scale):
    if way == UNIT and scale < 1:
        pytest.skip("vectors below the least norm lie as near to all centroids as float32 can tell")
    x = (scale * torch.randn(1, 16, 150)).bfloat16().transpose(1, 2)
    check(cuda_step, device, x, torch.randn(k, 16) * (1.0 if way == UNIT else scale), way)


@pytest.mark.parametrize("far", [1e19, 1e38])
def test_one_value_far_from_all_others(device, cuda_step, far):
    x, centroids = torch.randn(1, 32, 100), torch.randn(9, 32)
    x[0, 3, 7] = far
    x = x.bfloat16().transpose(1, 2)
    for changed in (False, True):
        if changed:
            centroids[4, 2] = -far
        for step, given in ((kmeans_step, x.float()), (kmeans_step, x), (cuda_step, x)):
            check(step, device, given, centroids, L2)


def test_duplicates_are_at_no_distance(device, cuda_step):
    centroids = torch.randn(20, 16).bfloat16().float() * 2.0**-70
    centroids[15:] = centroids[3]
    x = centroids[torch.arange(100) % 20].bfloat16().T.contiguous().T[None]
    expected = torch.where(torch.arange(100) % 20 < 15, torch.arange(100) % 20, 3)
    for step in (kmeans_step, cuda_step):
        labels, _, _, inertia = (t.cpu() for t in step(x.to(device), centroids.to(device), None, *L2))
        assert labels[0].equal(expected) and inertia == 0


@pytest.mark.parametrize("way", [L2, UNIT, COSINE])
@pytest.mark.parametrize("k", [1, 70])
def test_vectors_that_are_not_finite_go_to_the_first_centroid(device, cuda_step, k, way):
    x, centroids = torch.randn(1, 16, 90).bfloat16().transpose(1, 2), torch.randn(k, 16)
    clean = kmeans_assign(x.to(device), centroids.to(device), *way)[0].cpu()
    x[0, 3, 2], x[0, 40, 5], x[0, 80, 1] = NAN, INFINITY, -INFINITY
    expected = torch.tensor([NAN, INFINITY, INFINITY] if way == L2 else [NAN] * 3)
    others = torch.ones(90, dtype=torch.bool)
    others[[3, 40, 80]] = False
    for given in (x, x.float()):
        labels, distance = (t.cpu() for t in kmeans_assign(given.to(device), centroids.to(device), *way))
        assert labels[0, ~others].eq(0).all() and labels[0, others].equal(clean[0, others])
        torch.testing.assert_close(distance[0, ~others], expected, equal_nan=True)
        assert distance[0, others].isfinite().all()
    for step in (kmeans_step, cuda_step) if k <= 64 else (kmeans_step,):
        labels, sums, counts, inertia = (
            t.cpu() for t in step(x.to(device), centroids.to(device), None, *way)
        )
        assert labels[0, ~others].eq(0).all() and labels[0, others].equal(clean[0, others])
        assert counts.sum() == 90 and inertia.isnan() and sums[0].isnan().any()


@pytest.mark.parametrize("bad", [NAN, INFINITY])
def test_centroids_that_are_not_finite_show(device, cuda_step, bad):
    x, centroids = torch.randn(1, 16, 70).bfloat16().transpose(1, 2), torch.randn(9, 16)
    centroids[4, 2] = bad
    on_device = x.to(device), centroids.to(device)
    labels, distance = kmeans_assign(*on_device, *L2)
    assert labels.eq(0).all() and distance.isnan().all()
    for step in (kmeans_step, cuda_step):
        labels, _, _, inertia = step(*on_device, None, *L2)
        assert labels.eq(0).all() and inertia.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "normalize"), [(1e-30, False), (1e15, False), (1e20, True), (1e35, True), (1e35, False)]
)
def test_the_clustering_loss_takes_the_same_labels(device, dtype, scale, normalize):
    x, centroids = (
        (scale * torch.randn(1, 70, 16)).to(dtype),
        torch.randn(40, 16) * (1.0 if normalize else scale),
    )
    losses, lse, labels = cluster_cross_entropy_fwd(x.to(device), centroids.to(device), None, normalize)
    assert excess(labels.cpu(), x, centroids, "l2", normalize) < 1e-5
    grad = torch.ones(1, 70, device=device)
    dx = cluster_cross_entropy_bwd(grad, x.to(device), centroids.to(device), labels, lse, normalize)
    if scale < 1e30:
        exact = x.double().requires_grad_()
        rows = reference.unit_rows(exact[0], 1e-12) if normalize else exact[0]
        truth = torch.nn.functional.cross_entropy(
            rows @ centroids.double().T, labels[0].cpu(), reduction="none"
        )
        truth.sum().backward()
        assert (losses[0].cpu() - truth.detach()).norm() <= 2e-6 * truth.norm() + 1e-6
        assert dx.isfinite().all()
        if normalize:  # else the softmax changes with the logits' last digit
            assert (dx.cpu().double() - exact.grad).norm() <= 1e-2 * exact.grad.norm()
