"""The operators of the CUDA C++ kernels, with the emulator behind them: fakes, gradients, and who may choose them."""

from __future__ import annotations

import emulated_cuda
import emulated_kmeans
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmx_fast import reference
from cmx_fast.ops import (
    _implementations,
    attention_consistency,
    kmeans_assign,
    kmeans_step,
    pyramid_correlation,
)

OPERATORS = torch.ops.cmx_fast
pytestmark = pytest.mark.skipif(
    not hasattr(OPERATORS, "pyramid_correlation_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)


@pytest.fixture
def on_cpu():
    """Until the test's end CPU tensors go to the emulator."""
    with torch.library._scoped_library("cmx_fast", "IMPL") as library:
        for name, function in (vars(emulated_cuda.kernels()) | vars(emulated_kmeans.kernels())).items():
            operator, way = name.rsplit("_", 1)
            library.impl(f"{operator}_cuda_{way}", function, "CPU")
        yield


def leaves(**options):
    features, filters = torch.randn(2, 8, 2, 5, 6), torch.randn(2, 8)
    prediction = torch.rand(2, 2, 5, 6)
    return [t.to(**options).requires_grad_() for t in (features, filters, prediction)]


@pytest.mark.parametrize("norm", emulated_cuda.NORMS)
def test_registered_as_pytorch_wants_it(on_cpu, norm):
    features, filters, prediction = leaves()
    torch.library.opcheck(OPERATORS.pyramid_correlation_cuda_fwd, (features, filters, 2, norm))
    torch.library.opcheck(OPERATORS.attention_consistency_cuda_fwd, (features, filters, prediction, 2, norm))


@pytest.mark.parametrize("norm", emulated_cuda.NORMS)
def test_gradients_are_its_own_backwards(on_cpu, norm):
    features, filters, prediction = leaves()
    attention = OPERATORS.pyramid_correlation_cuda_fwd(features, filters, 2, norm)[0]
    losses = OPERATORS.attention_consistency_cuda_fwd(features, filters, prediction, 2, norm)[0]
    expected = reference.pyramid_correlation(features, filters, levels=2, norm=norm)
    of_map = (expected - prediction).square().flatten(1).sum(1)
    emulated_cuda.library().launched()
    for actual, truth, inputs in (
        (attention, expected, (features, filters)),
        (losses, of_map, (features, filters, prediction)),
    ):
        torch.testing.assert_close(actual, truth)
        gradients = torch.autograd.grad(actual.sum(), inputs)
        assert emulated_cuda.library().launched() == 2
        for gradient, exact in zip(gradients, torch.autograd.grad(truth.sum(), inputs, retain_graph=True)):
            torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(
        OPERATORS.pyramid_correlation_cuda_fwd(features, filters, 2, norm)[0].sum(),
        features,
        create_graph=True,
    )
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_chosen_by_name_for_tensors_on_a_gpu(monkeypatch):
    """Shapes and types only: no GPU is needed to say which operator would run."""
    monkeypatch.setattr(_implementations, "COMPILED_FOR_CUDA", frozenset(["pyramid_correlation"]))
    with FakeTensorMode():
        features = torch.empty(2, 8, 5, 6, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        filters = torch.empty(2, 8, device="cuda", requires_grad=True)
        prediction = torch.empty(2, 5, 6, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        attention = pyramid_correlation(features, filters, impl="cuda")
        loss = attention_consistency(features, filters, prediction, teach_features=True, impl="cuda")
    assert attention.shape == (2, 5, 6) and attention.dtype == loss.dtype == torch.float32
    # No further: autograd's engine asks for the device itself.
    for value, operator in (
        (attention, "pyramid_correlation_cuda_fwd"),
        (loss, "attention_consistency_cuda_fwd"),
    ):
        assert operator in "".join(graph_of(value))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_kmeans_step_is_registered_as_pytorch_wants_it(on_cpu, dtype, weighted):
    x = torch.randn(2, 16, 70).to(dtype).transpose(1, 2)
    weight = torch.rand(2, 70) if weighted else None
    torch.library.opcheck(OPERATORS.kmeans_cuda_step, (x, torch.randn(5, 16), weight, "cosine", False))


@pytest.fixture
def chosen(monkeypatch):
    """CPU tensors count as a GPU's where an implementation is chosen."""
    choose = _implementations.choose
    monkeypatch.setattr(_implementations, "COMPILED_FOR_CUDA", frozenset(["kmeans"]))
    monkeypatch.setattr(
        "cmx_fast.ops.kmeans.choose", lambda op, impl, device, *rest: choose(op, impl, "cuda", *rest)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_public_step_runs_it(on_cpu, chosen, weighted):
    x, centroids = torch.randn(2, 16, 7, 9).bfloat16(), torch.randn(5, 16)
    weight = torch.rand(2, 7, 9) if weighted else None
    emulated_kmeans.library().launched()
    actual = kmeans_step(x, centroids, weight=weight, normalize=True, impl="cuda")
    assert emulated_kmeans.library().launched() == 3
    for one, other in zip(actual, reference.kmeans_step(x, centroids, weight=weight, normalize=True)):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "clusters", "problem"),
    [
        (torch.empty(2, 16, 7, 9), 5, "x in bfloat16 or float16, not torch.float32; use impl='triton'"),
        (torch.empty(20, 16).half(), 5, r"maps \(B, D, H, W\), not x of shape \(20, 16\); use impl='triton'"),
        (
            torch.empty(2, 24, 7, 9).half(),
            5,
            "a multiple of 16 features up to 128, not 24; use impl='triton'",
        ),
        (torch.empty(1, 144, 2, 2).half(), 5, "a multiple of 16 features up to 128, not 144; use"),
        (torch.empty(2, 16, 7, 9).half(), 65, "at most 64 centroids, not 65; use impl='triton'"),
        (
            torch.empty(2, 16, 7, 9).half().to(memory_format=torch.channels_last),
            5,
            r"neighbouring positions .* not x with strides \(1008, 1, 144, 16\)",
        ),
    ],
)
def test_a_step_that_it_does_not_take_is_refused(on_cpu, chosen, x, clusters, problem):
    with pytest.raises(ValueError, match=problem):
        kmeans_step(x, torch.randn(clusters, x.shape[1]), impl="cuda")


def test_there_is_no_assignment_in_cuda(chosen):
    with pytest.raises(ValueError, match="only kmeans_step; use impl='triton'"):
        kmeans_assign(torch.zeros(2, 16, 7, 9).half(), torch.randn(5, 16), impl="cuda")


def graph_of(value):
    """The names of the autograd nodes behind a value."""
    names, pending = [], [value.grad_fn]
    while pending:
        node = pending.pop()
        names.append(node.name())
        pending += [next_node for next_node, _ in node.next_functions if next_node is not None]
    return names


def test_a_build_without_it_says_so(monkeypatch):
    monkeypatch.setattr(_implementations, "COMPILED_FOR_CUDA", frozenset())
    choose = _implementations.choose
    with pytest.raises(ValueError, match="built without its CUDA files .*FORCE_CUDA=1"):
        choose("pyramid_correlation", "cuda", "cuda", torch.float32, 8)
    with pytest.raises(ValueError, match="it has no CUDA C"):
        choose("info_nce", "cuda", "cuda", torch.float32, 8)
    monkeypatch.setattr(_implementations, "COMPILED_FOR_CUDA", frozenset(["pyramid_correlation"]))
    with pytest.raises(ValueError, match="float32, bfloat16 and float16, not float64"):
        choose("pyramid_correlation", "cuda", "cuda", torch.float64, 8)
    # Triton's until a measurement says otherwise.
    assert choose("pyramid_correlation", "auto", "cuda", torch.float32, 8) == "triton"
