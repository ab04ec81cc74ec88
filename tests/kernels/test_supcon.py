"""The SupCon launchers against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch
from contrastive_truth import supcon_truth
from torch import Tensor

pytest.importorskip("triton")
from cmx_fast.kernels.common import classes
from cmx_fast.kernels.supcon import supcon_bwd, supcon_fwd

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def run(device, grad_loss, features, labels, scale, ref=None, ref_labels=None, normalize=True):
    """Loss, dfeatures, dref, dscale of the launchers, on the CPU."""
    there = [x if x is None else x.to(device) for x in (features, labels, scale, ref, ref_labels)]
    loss, stats, class_rows, saved = supcon_fwd(*there, normalize, False)
    gradients = supcon_bwd(
        grad_loss.to(device), *there, normalize, stats, class_rows, saved, True, ref is not None
    )
    return [x.cpu() for x in (loss, *gradients)]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(device, features, labels, scale, ref=None, ref_labels=None, normalize=True, tolerance=3e-6):
    """Compare loss and all gradients with float64, judged as vectors."""
    scale, grad_loss = torch.tensor(scale), torch.randn(len(features))
    found = run(device, grad_loss, features, labels, scale, ref, ref_labels, normalize)
    inputs = [x.double().requires_grad_() for x in (features, scale)] + (
        [] if ref is None else [ref.double().requires_grad_()]
    )
    loss = supcon_truth(
        inputs[0], labels, inputs[1], None if ref is None else inputs[2], ref_labels, normalize
    )
    dfeatures, dscale, *dref = torch.autograd.grad((loss * grad_loss.double()).sum(), inputs)
    assert [x.dtype for x in found] == [torch.float32, features.dtype, features.dtype, torch.float32]
    assert relative(found[0], loss.detach()) < tolerance
    assert relative(found[1], dfeatures) < tolerance
    if ref is not None:
        assert relative(found[2], dref[0]) < tolerance
    assert abs(found[3].item() - dscale.item()) < tolerance * 2 * grad_loss.abs().sum()


def problem(m: int, d: int, n_classes: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Features, and labels that are neither dense nor positive."""
    return torch.randn(m, d).to(dtype), 7 * torch.randint(0, n_classes, (m,)) - 10


@pytest.mark.parametrize(("m", "d", "n_classes"), [(63, 17, 5), (129, 64, 60), (63, 300, 3), (20, 777, 4)])
def test_square(device, m, d, n_classes):
    check(device, *problem(m, d, n_classes), 14.3)


@pytest.mark.parametrize(("m", "r"), [(63, 129), (129, 40), (1, 63)])
def test_references(device, m, r):
    ref, ref_labels = problem(r, 17, 4)
    check(device, *problem(m, 17, 6), 14.3, ref, ref_labels)


def test_not_normalized(device):
    check(device, *problem(63, 17, 5), 0.5, normalize=False)
    check(device, *problem(40, 17, 5), 0.5, *problem(30, 17, 5), normalize=False)


@pytest.mark.parametrize("n_classes", [1, 40])
def test_one_class_and_pairs(device, n_classes):
    features, _ = problem(80, 17, 1)
    check(device, features, torch.arange(80) % n_classes, 14.3)


def test_many_labels_are_sorted_by_torch(device, monkeypatch):
    monkeypatch.setattr(classes, "LARGEST_RANKED", 10)
    check(device, *problem(63, 17, 5), 14.3, *problem(50, 17, 5))
    check(device, *problem(63, 17, 5), 14.3)


def test_row_without_positive_has_no_loss_and_no_gradient(device):
    features, labels = torch.randn(10, 17), torch.arange(10)
    loss, dfeatures, _, dscale = run(device, torch.ones(10), features, labels, torch.tensor(14.3))
    assert (loss == 0).all()
    assert (dfeatures == 0).all()
    assert dscale == 0
    labels[1] = 0
    loss = run(device, torch.ones(10), features, labels, torch.tensor(14.3))[0]
    assert (loss[:2] > 0).all()
    assert (loss[2:] == 0).all()


def test_two_views_are_nt_xent(device):
    """Labels all distinct but for the two views: SimCLR's loss."""
    check(device, torch.randn(60, 17), torch.arange(30).repeat(2), 2.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
def test_half_precision(device, dtype, tolerance):
    check(device, *problem(63, 40, 5, dtype), 14.3, tolerance=tolerance)


@pytest.mark.parametrize("temperature", [0.005, 0.01])
def test_low_temperature(device, temperature):
    features, labels = problem(70, 8, 6)
    features[3], features[4] = 0, -features[5]
    check(device, features, labels, 1 / temperature, tolerance=3e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_shows(device, value):
    features, labels = torch.randn(20, 17).abs(), torch.arange(20) // 2
    features[5, 2] = value
    assert run(device, torch.ones(20), features, labels, torch.tensor(1.0), normalize=False)[0].isnan().all()
    alone = run(device, torch.ones(1), features[5:6], labels[:1], torch.tensor(1.0), normalize=False)[0]
    assert alone.isnan().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_not_positive(device, scale):
    features, labels = problem(12, 17, 3)
    loss, dfeatures, _, dscale = run(device, torch.ones(12), features, labels, torch.tensor(scale))
    assert loss.isnan().all()
    assert dfeatures.isnan().all()
    assert dscale.isnan()


def test_empty(device):
    nothing, labels = torch.randn(0, 17), torch.zeros(0, dtype=torch.int64)
    loss, dfeatures, _, dscale = run(device, torch.ones(0), nothing, labels, torch.tensor(1.0))
    assert loss.shape == (0,)
    assert dfeatures.shape == (0, 17)
    assert dscale == 0
    features = torch.randn(5, 17)
    loss, dfeatures, dref, _ = run(
        device, torch.ones(5), features, torch.zeros(5, dtype=torch.int64), torch.tensor(1.0), nothing, labels
    )
    assert (loss == 0).all()
    assert (dfeatures == 0).all()
    assert dref.shape == (0, 17)


def test_same_bits_twice(device):
    arguments = (torch.randn(129), *problem(129, 17, 5), torch.tensor(14.3))
    assert all(torch.equal(x, y) for x, y in zip(run(device, *arguments), run(device, *arguments)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("references", [False, True])
def test_launches(device, count_launches, normalize, references):
    """Four kernels each way; five backward where both sides of a rectangular problem want their gradient."""
    features, labels = (x.to(device) for x in problem(20, 17, 3))
    ref = [x.to(device) for x in problem(30, 17, 3)] if references else [None, None]
    inputs = (features, labels, torch.tensor(1.0, device=device), *ref, normalize)
    with count_launches() as forward:
        _, *saved = supcon_fwd(*inputs, False)
    with count_launches() as backward:
        supcon_bwd(torch.ones(20, device=device), *inputs, *saved, True, references)
    assert forward.launches == 4
    assert backward.launches == (5 if references else 4)
