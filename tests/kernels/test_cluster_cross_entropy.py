"""The launchers of the loss against frozen centroids, against float64 truth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from cmx_fast.kernels.cluster_cross_entropy import cluster_cross_entropy_bwd, cluster_cross_entropy_fwd

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def run(device, x, centroids, target, normalize, grad):
    x, centroids, grad = (t.to(device) for t in (x, centroids, grad))
    target = None if target is None else target.to(device)
    losses, lse, labels = cluster_cross_entropy_fwd(x, centroids, target, normalize)
    dx = cluster_cross_entropy_bwd(grad, x, centroids, labels, lse, normalize)
    assert dx.stride() == x.stride() and dx.dtype == x.dtype
    return losses.cpu(), labels.cpu(), dx.cpu()


def check(device, x, centroids, target, normalize, tolerance):
    grad = torch.rand(x.shape[:2])
    losses, labels, dx = run(device, x, centroids, target, normalize, grad)
    exact = x.to(torch.float64, copy=True).requires_grad_()
    rows = F.normalize(exact, dim=2) if normalize else exact
    logits = (rows @ centroids.double().T).reshape(-1, len(centroids))
    expected = F.cross_entropy(logits, labels.reshape(-1), reduction="none").reshape(x.shape[:2])
    (expected * grad).sum().backward()
    if target is None:
        nearest = torch.cdist(rows.detach().reshape(-1, x.shape[2]), centroids.double()).argmin(1)
        assert labels.reshape(-1).equal(nearest)
    assert (losses - expected).norm() <= 2e-6 * expected.norm()
    assert (dx.double() - exact.grad).norm() <= tolerance * exact.grad.norm()


@pytest.mark.parametrize(
    ("b", "p", "d", "k", "given", "normalize"),
    [
        (1, 130, 17, 5, True, True),
        (1, 130, 17, 5, False, False),
        (2, 63, 33, 40, True, False),
        (2, 63, 33, 70, False, True),
        (1, 20, 150, 9, False, True),
        (1, 9, 300, 40, True, True),  # the gradient in two parts
        (1, 9, 300, 40, False, False),
        (1, 40, 1, 3, True, False),
    ],
)
def test_loss_and_gradient(device, b, p, d, k, given, normalize):
    x = torch.randn(b, d, p).transpose(1, 2) if given else torch.randn(b, p, d)
    check(device, x, torch.randn(k, d), torch.randint(k, (b, p)) if given else None, normalize, 2e-6)


@pytest.mark.parametrize(("dtype", "d"), [(torch.bfloat16, 48), (torch.float16, 24), (torch.bfloat16, 150)])
def test_half_precision(device, dtype, d):
    x = torch.randn(2, d, 40).to(dtype).transpose(1, 2)
    for target in (torch.randint(7, (2, 40)), None):
        check(device, x, torch.randn(7, d), target, True, 4e-3 if dtype == torch.bfloat16 else 5e-4)


def test_gradient_keeps_its_digits_where_the_loss_vanishes(device):
    target = torch.randint(9, (1, 60))
    check(
        device, 14 * F.one_hot(target, 9).float() + torch.randn(1, 60, 9), torch.eye(9), target, False, 1e-5
    )


def test_one_centroid_has_no_loss(device):
    losses, labels, dx = run(device, torch.randn(1, 9, 4), torch.randn(1, 4), None, True, torch.ones(1, 9))
    assert losses.eq(0).all() and labels.eq(0).all() and dx.eq(0).all()


def test_target_out_of_range_is_nan_and_nan_stays_in_its_row(device):
    x, target = torch.randn(1, 9, 4), torch.randint(3, (1, 9))
    target[0, 2], target[0, 3] = 3, -1
    x[0, 5, 1] = float("nan")
    losses, _, dx = run(device, x, torch.randn(3, 4), target, False, torch.ones(1, 9))
    assert losses.isnan().nonzero()[:, 1].tolist() == [2, 3, 5]
    assert dx.isnan().any(2).nonzero()[:, 1].tolist() == [2, 3, 5]


@pytest.mark.parametrize("k", [1, 40])
def test_nan_without_a_target_stays_in_its_row(device, k):
    x = torch.randn(1, 9, 4)
    x[0, 5, 1] = float("nan")
    losses, labels, dx = run(device, x, torch.randn(k, 4), None, True, torch.ones(1, 9))
    assert losses.isnan().nonzero()[:, 1].tolist() == [5]
    assert dx.isnan().any(2).nonzero()[:, 1].tolist() == [5]
    assert (labels >= 0).all() and (labels < k).all()


def test_a_common_offset_of_vectors_and_centroids(device):
    x, centroids = torch.randn(1, 40, 16) + 1e3, torch.randn(9, 16) + 1e3
    losses, labels, _ = run(device, x, centroids, None, False, torch.ones(1, 40))
    assert labels.reshape(-1).equal(torch.cdist(x[0].double(), centroids.double()).argmin(1))
    logits = x[0].double() @ centroids.double().T
    expected = F.cross_entropy(logits, labels[0], reduction="none")
    torch.testing.assert_close(losses[0].double(), expected, rtol=1e-5, atol=2e-3)


def test_both_passes_read_the_vectors_in_one_launch(device, count_launches):
    x, centroids = torch.randn(1, 40, 16, device=device), torch.randn(5, 16, device=device)
    with count_launches() as forward:
        losses, lse, labels = cluster_cross_entropy_fwd(x, centroids, None, True)
    with count_launches() as backward:
        cluster_cross_entropy_bwd(losses, x, centroids, labels, lse, True)
    assert forward.launches == backward.launches == 2  # the other one prepares the centroids
