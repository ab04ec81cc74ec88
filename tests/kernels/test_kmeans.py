"""The k-means launchers, Triton's and CUDA C++'s, against float64 truth.

Without a GPU the first run in Triton's interpreter, the second in tests/cuda/emulator.
"""

from __future__ import annotations

import emulated_kmeans
import pytest
import torch
from torch import Tensor

from cmx_fast import reference
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA, operator

pytest.importorskip("triton")
from cmx_fast.kernels.kmeans import launchers as kmeans
from cmx_fast.kernels.kmeans import sums as kmeans_sums
from cmx_fast.kernels.kmeans.launchers import kmeans_assign, kmeans_step

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
L2, UNIT, COSINE = ("l2", False), ("l2", True), ("cosine", False)


def vectors(b: int, p: int, d: int, layout: str, dtype=torch.float32) -> Tensor:
    """(B, P, D) with features or positions next to each other in memory."""
    x = torch.randn(b, p, d).to(dtype)
    return x if layout == "rows" else x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.fixture
def cuda_step(device):
    """The function behind the operator in CUDA C++."""
    if device.type == "cpu":
        return emulated_kmeans.kernels().kmeans_step
    if "kmeans" not in COMPILED_FOR_CUDA:
        pytest.skip("the extension was built without its CUDA files")
    return operator("kmeans", "step", "cuda")


def check_step(step, device, x, centroids, weight, metric, normalize, tolerance=2e-6):
    on_device = [t if t is None else t.to(device) for t in (x, centroids, weight)]
    labels, sums, counts, inertia = (t.cpu() for t in step(*on_device, metric, normalize))
    flat = None if weight is None else weight.reshape(-1).double()
    truth = reference.kmeans_step(
        x.reshape(-1, x.shape[2]).double(),
        centroids.double(),
        weight=flat,
        metric=metric,
        normalize=normalize,
    )
    assert labels.reshape(-1).equal(truth[0])
    assert (sums.double() - truth[1]).norm() <= tolerance * truth[1].norm()
    assert counts.dtype == truth[2].dtype
    torch.testing.assert_close(counts, truth[2], rtol=1e-6, atol=1e-6)
    assert inertia.item() == pytest.approx(truth[3].item(), rel=1e-5)
    return labels


def check(device, x, centroids, weight, metric, normalize, tolerance=2e-6):
    labels = check_step(kmeans_step, device, x, centroids, weight, metric, normalize, tolerance)
    again, distance = (t.cpu() for t in kmeans_assign(x.to(device), centroids.to(device), metric, normalize))
    assert again.equal(labels)
    _, expected = reference.kmeans_assign(
        x.reshape(-1, x.shape[2]).double(), centroids.double(), metric=metric, normalize=normalize
    )
    torch.testing.assert_close(distance.reshape(-1).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("b", "p", "d", "k", "layout", "way"),
    [
        (1, 130, 17, 5, "rows", L2),
        (1, 130, 17, 1, "maps", COSINE),
        (2, 300, 3, 33, "maps", UNIT),  # several blocks in a program
        (2, 63, 33, 27, "maps", UNIT),
        (2, 63, 33, 27, "rows", COSINE),
        (3, 20, 150, 9, "maps", L2),
        (1, 20, 150, 9, "rows", COSINE),
        (1, 70, 20, 70, "maps", UNIT),
        (1, 70, 1, 70, "rows", L2),
    ],
)
def test_step(device, b, p, d, k, layout, way, weighted):
    weight = torch.rand(b, p) if weighted else None
    check(device, vectors(b, p, d, layout), torch.randn(k, d), weight, *way)


@pytest.mark.parametrize(
    ("dtype", "d", "k", "way"),
    [
        (torch.bfloat16, 48, 7, L2),
        (torch.float16, 48, 7, UNIT),
        (torch.bfloat16, 48, 70, COSINE),
        (torch.float16, 24, 70, L2),
        (torch.bfloat16, 150, 9, UNIT),
    ],
)
def test_half_precision(device, dtype, d, k, way):
    check(device, vectors(2, 40, d, "maps", dtype), torch.randn(k, d), None, *way)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("b", "p", "d", "k", "way"),
    [
        (3, 49, 128, 27, L2),
        (2, 400, 32, 27, UNIT),  # several tiles a block
        (1, 130, 16, 1, COSINE),
        (2, 63, 64, 64, COSINE),
        (2, 66, 48, 33, L2),
    ],
)
def test_step_in_cuda(device, cuda_step, b, p, d, k, way, weighted, dtype):
    x, weight = vectors(b, p, d, "maps", dtype), torch.rand(b, p) if weighted else None
    check_step(cuda_step, device, x, torch.randn(k, d), weight, *way)


def test_programs_add_a_bounded_number_of_vectors(device, monkeypatch):
    # In float32, whatever the number of vectors; the rest is up to float64.
    monkeypatch.setattr(kmeans, "VECTORS_PER_PROGRAM", 64)
    monkeypatch.setattr(kmeans, "multiprocessors", lambda device: 1)
    check(device, vectors(1, 500, 5, "rows"), torch.randn(4, 5), None, *L2)


@pytest.mark.parametrize("k", [8, 70])
def test_a_common_offset_leaves_the_labels_right(device, k):
    check(device, vectors(1, 80, 16, "rows") + 1e3, torch.randn(k, 16) + 1e3, None, "l2", False)


@pytest.mark.parametrize("k", [20, 100])
def test_equal_centroids_go_to_the_lowest_index(device, k, products_as_on_a_gpu):
    centroids = torch.randn(k, 9)
    centroids[5:] = centroids[3]
    x = (centroids[3] + 1e-3 * torch.randn(1, 40, 9)).to(device)
    assert (kmeans_assign(x, centroids.to(device), "l2", False)[0] == 3).all()


def test_clusters_of_several_segments_and_empty_ones(device, monkeypatch):
    monkeypatch.setattr(kmeans_sums, "SEGMENT", 32)
    centroids = 5 * torch.randn(80, 6)
    members = torch.cat([torch.zeros(150), torch.full((70,), 79), torch.arange(10, 20)]).long()
    check(device, (centroids[members] + 0.01 * torch.randn(230, 6))[None], centroids, None, "l2", False)


def test_nan_and_zero_vectors_show(device):
    x = torch.randn(1, 40, 5)
    x[0, 7, 2] = float("nan")
    x[0, 9] = 0
    centroids = torch.randn(4, 5)
    on_device = x.to(device), centroids.to(device)
    assert kmeans_assign(*on_device, "l2", False)[1].cpu().isnan().nonzero()[:, 1].tolist() == [7]
    assert kmeans_assign(*on_device, "cosine", False)[1].cpu().isnan().nonzero()[:, 1].tolist() == [7, 9]
    assert kmeans_step(*on_device, None, "l2", False)[3].isnan()


def test_nothing(device):
    labels, sums, counts, inertia = kmeans_step(
        torch.empty(1, 0, 3, device=device), torch.randn(70, 3, device=device), None, "l2", False
    )
    assert labels.shape == (1, 0) and counts.eq(0).all() and inertia == 0
    assert sums.eq(0).all()


def test_few_launches(device, count_launches):
    x, centroids = torch.randn(1, 100, 16, device=device), torch.randn(20, 16, device=device)
    with count_launches() as fused:
        kmeans_step(x, centroids, None, "l2", True)
    with count_launches() as sorted_sums:
        kmeans_step(x, torch.randn(100, 16, device=device), None, "l2", True)
    assert fused.launches == 3 and sorted_sums.launches == 4
