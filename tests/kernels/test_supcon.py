"""The SupCon launchers against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch
from contrastive_truth import supcon_truth, unit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cmx_fast.ops._implementations import HAS_EXTENSION

pytest.importorskip("triton")
from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def run(device, grad_loss, features, labels, scale, ref=None, ref_labels=None, normalize=True):
    """Loss, dfeatures, dref, dscale of the launchers, on the CPU."""
    on_device = [x if x is None else x.to(device) for x in (features, labels, scale, ref, ref_labels)]
    loss, *saved = supcon_fwd(*on_device, normalize, False)
    gradients = supcon_bwd(grad_loss.to(device), *on_device, normalize, *saved, True, ref is not None)
    return [x.cpu() for x in (loss, *gradients)]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(device, features, labels, scale, ref=None, ref_labels=None, normalize=True, tolerance=3e-6):
    """Compare loss and all gradients with float64, judged as vectors."""
    scale, grad_loss = torch.tensor(scale), torch.randn(len(features))
    actual = run(device, grad_loss, features, labels, scale, ref, ref_labels, normalize)
    inputs = [x.double().requires_grad_() for x in (features, scale)] + (
        [] if ref is None else [ref.double().requires_grad_()]
    )
    loss = supcon_truth(
        inputs[0], labels, inputs[1], None if ref is None else inputs[2], ref_labels, normalize
    )
    dfeatures, dscale, *dref = torch.autograd.grad((loss * grad_loss.double()).sum(), inputs)
    assert [x.dtype for x in actual] == [torch.float32, features.dtype, features.dtype, torch.float32]
    assert relative(actual[0], loss.detach()) < tolerance
    assert relative(actual[1], dfeatures) < tolerance
    if ref is not None:
        assert relative(actual[2], dref[0]) < tolerance
    assert abs(actual[3].item() - dscale.item()) < tolerance * 2 * grad_loss.abs().sum()


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


def test_labels_are_told_apart_by_all_of_their_64_bits(device):
    features, _ = problem(80, 17, 1)
    values = torch.tensor([0, 1, 2**32, 2**32 + 1, -1, 2**63 - 1, -(2**63), -(2**63) + 1])
    check(device, features, values[torch.arange(80) % 8], 14.3)
    check(device, features, values[torch.arange(80) % 8], 14.3, features[:50], values[torch.arange(50) % 7])


@pytest.mark.parametrize("label", [0, -1])
def test_what_lies_beyond_the_last_row_is_nobodys_positive(device, label):
    """Padding has label and logit 0; here all other logits are about -40."""
    features, labels = torch.rand(67, 17) + 1, torch.full((67,), label)
    check(device, features, labels, 0.1, normalize=False, tolerance=3e-5)
    check(device, features, labels, 1.0, -features[:5], labels[:5], normalize=False, tolerance=3e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("noise", [0.9, 0.55, 0.25])  # losses of about 0.03, 0.004 and 0.001
def test_gradient_is_as_exact_as_eagers_where_the_only_positive_dominates(
    device, noise, references, dtype, products_as_on_a_gpu
):
    first = unit(torch.randn(130, 64))
    second = unit(first + noise * torch.randn(130, 64) / 8)
    labels, scale, pull = torch.arange(130), torch.tensor(14.3), torch.linspace(1, 2, 130)
    rows = [first.to(dtype), second.to(dtype)]
    if not references:
        rows, labels, pull = [torch.cat(rows)], labels.repeat(2), pull.repeat(2)
    columns = {"ref_features": rows[1], "ref_labels": labels} if references else {}

    def gradients(rows):
        leaves = [x.clone().requires_grad_() for x in rows]
        logits = scale.to(rows[0].dtype) * leaves[0] @ leaves[-1].T
        positive = labels[:, None] == labels
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not references:
            itself = torch.eye(len(labels), dtype=torch.bool)
            positive = positive & ~itself
            logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
        # As its users write it; the reference takes log_softmax, for large logits.
        loss = logits.logsumexp(1) - logits.masked_fill(~positive, 0).sum(1)
        return torch.autograd.grad((loss * pull.to(loss.dtype)).sum(), leaves)

    reference_columns = (columns.get("ref_features"), columns.get("ref_labels"))
    actual = run(device, pull, rows[0], labels, scale, *reference_columns, normalize=False)[1:3]
    eager, truth = gradients(rows), gradients([x.double() for x in rows])
    for f, e, t in zip(actual, eager, truth):
        assert relative(f, t) < relative(e, t)


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


@pytest.mark.skipif(not HAS_EXTENSION, reason="the C++ extension, which has the schema, is not built")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("references", [False, True])
def test_results_have_the_shapes_that_the_compiler_is_told(device, normalize, references):
    inputs = [*problem(20, 17, 3), torch.tensor(1.0)] + (
        [*problem(30, 17, 3)] if references else [None, None]
    )
    actual = supcon_fwd(*(x if x is None else x.to(device) for x in inputs), normalize, False)
    with FakeTensorMode():
        on_device = [x if x is None else torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs]
        described_outputs = torch.ops.cmx_fast.supcon_fwd(*on_device, normalize, False)
    assert [(x.shape, x.dtype) for x in actual] == [(x.shape, x.dtype) for x in described_outputs]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("references", [False, True])
def test_launches(device, count_launches, normalize, references):
    """Two kernels each way; one more to normalise, and one where both sides of a rectangular problem want gradients."""
    features, labels = (x.to(device) for x in problem(20, 17, 3))
    ref = [x.to(device) for x in problem(30, 17, 3)] if references else [None, None]
    inputs = (features, labels, torch.tensor(1.0, device=device), *ref, normalize)
    with count_launches() as forward:
        _, *saved = supcon_fwd(*inputs, False)
    with count_launches() as backward:
        supcon_bwd(torch.ones(20, device=device), *inputs, *saved, True, references)
    assert forward.launches == (3 if normalize else 2)
    assert backward.launches == (3 if references else 2)
