"""The launchers of pyramid correlation, Triton's and CUDA C++'s, against float64 truth.

Without a GPU the first run in Triton's interpreter, the second in tests/cuda/emulator.
"""

from __future__ import annotations

from types import SimpleNamespace

import emulated_cuda
import pytest
import torch

from cmx_fast import reference
from cmx_fast.ops._implementations import COMPILED_FOR_CUDA, operator

pytest.importorskip("triton")
from cmx_fast.kernels.pyramid_correlation import launchers as triton_kernels

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.fixture(params=["triton", "cuda"])
def kernels(request, device):
    """The functions behind one implementation's operators."""
    if request.param == "triton":
        return triton_kernels
    if device.type == "cpu":
        return emulated_cuda.kernels()
    if "pyramid_correlation" not in COMPILED_FOR_CUDA:
        pytest.skip("the extension was built without its CUDA files")
    names = ("pyramid_correlation_fwd", "pyramid_correlation_bwd", "attention_consistency_fwd")
    return SimpleNamespace(**{name: operator(*name.rsplit("_", 1), "cuda") for name in names})


def inputs(shape, dtype=torch.float32, layout=torch.contiguous_format):
    features = (torch.randn(shape) + 0.3).to(dtype).to(memory_format=layout)
    return features, torch.randn(shape[:2]), torch.randn(shape[0], *shape[2:])


def truth(features, filters, pull, **options):
    exact = [t.to(torch.float64, copy=True).requires_grad_() for t in (features, filters)]
    attention = reference.pyramid_correlation(*exact, **options)
    (attention * pull.double()).sum().backward()
    return attention.detach(), exact[0].grad, exact[1].grad


def close(actual, expected, tolerance):
    return (actual.double().cpu() - expected).norm() <= tolerance * expected.norm() + 1e-12


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "norm"),
    [
        ((2, 5, 2, 7, 9), "cosine"),
        ((2, 5, 2, 7, 9), "softmax"),
        ((2, 5, 2, 7, 9), "none"),
        ((1, 130, 1, 8, 8), "cosine"),
        ((2, 3, 1, 1, 1), "cosine"),
        ((1, 5, 2, 20, 30), "cosine"),  # enough tiles that programs share a sample's
        ((1, 5, 2, 20, 30), "none"),
    ],
)
def test_map_and_gradients(device, kernels, shape, levels, norm):
    given = inputs(shape)
    features, filters, pull = (t.to(device) for t in given)
    attention, *kept = kernels.pyramid_correlation_fwd(features, filters, levels, norm)
    assert kept[0].shape[1] == (0 if norm != "cosine" else kept[1].shape[1])
    gradients = kernels.pyramid_correlation_bwd(pull, features, filters, attention, *kept, levels, norm)
    for actual, expected in zip((attention, *gradients), truth(*given, levels=levels, norm=norm)):
        assert actual.shape == expected.shape and close(actual, expected, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_halves_and_layouts(device, kernels, dtype, layout):
    given = inputs((2, 33, 2, 6, 5), dtype, layout)
    features, filters, pull = (t.to(device) for t in given)
    attention, *kept = kernels.pyramid_correlation_fwd(features, filters, 2, "cosine")
    gradients = kernels.pyramid_correlation_bwd(pull, features, filters, attention, *kept, 2, "cosine")
    assert gradients[0].dtype == dtype and gradients[0].stride() == features.stride()
    for actual, expected, tolerance in zip((attention, *gradients), truth(*given), (1e-5, 1e-2, 1e-5)):
        assert close(actual, expected, tolerance)


@pytest.mark.parametrize("norm", ["cosine", "softmax", "none"])
def test_consistency(device, kernels, norm):
    features, filters, prediction = (t.to(device) for t in inputs((3, 20, 1, 6, 7)))
    losses, difference, *kept = kernels.attention_consistency_fwd(features, filters, prediction, 2, norm)
    attention, *same = kernels.pyramid_correlation_fwd(features, filters, 2, norm)
    torch.testing.assert_close(difference, attention - prediction)
    torch.testing.assert_close(losses, difference.flatten(1).square().sum(1))
    assert all(one.equal(other) for one, other in zip(kept, same))


def test_zero_vectors_and_nan(device, kernels):
    features, filters, pull = inputs((2, 4, 1, 5, 6))
    features[0, :, 0, 2, 3] = 0
    filters[1] = 0
    features, filters, pull = (t.to(device) for t in (features, filters, pull))
    attention, *kept = kernels.pyramid_correlation_fwd(features, filters, 1, "cosine")
    dfeatures, dfilters = kernels.pyramid_correlation_bwd(
        pull, features, filters, attention, *kept, 1, "cosine"
    )
    assert attention[0, 0, 2, 3] == 0.5 and (attention[1] == 0.5).all()
    assert (dfeatures[0, :, 0, 2, 3] == 0).all() and (dfeatures[1] == 0).all() and (dfilters[1] == 0).all()
    features[0, 1, 0, 0, 0] = float("nan")
    attention = kernels.pyramid_correlation_fwd(features, filters, 2, "cosine")[0]
    assert attention[0, 0, 0, 0].isnan() and attention[0, 0, 4:, 4:].isfinite().all()


def test_softmax_of_nan_is_nan_everywhere(device, kernels):
    features, filters, _ = (t.to(device) for t in inputs((2, 4, 1, 5, 6)))
    features[1, 1, 0, 4, 5] = float("nan")
    attention = kernels.pyramid_correlation_fwd(features, filters, 2, "softmax")[0]
    assert attention[0].isfinite().all() and attention[1].isnan().all()


def test_few_launches(device, count_launches):
    features, filters, pull = (t.to(device) for t in inputs((1, 4, 1, 4, 4)))
    with count_launches() as forward:
        attention, *kept = triton_kernels.pyramid_correlation_fwd(features, filters, 2, "cosine")
    with count_launches() as backward:
        triton_kernels.pyramid_correlation_bwd(pull, features, filters, attention, *kept, 2, "cosine")
    assert forward.launches == 2 and backward.launches == 2


def test_the_same_bits_twice(device, kernels):
    features, filters, pull = (t.to(device) for t in inputs((1, 200, 1, 6, 6)))
    runs = []
    for _ in range(2):
        attention, *kept = kernels.pyramid_correlation_fwd(features, filters, 2, "cosine")
        runs.append(
            (
                attention,
                *kernels.pyramid_correlation_bwd(pull, features, filters, attention, *kept, 2, "cosine"),
            )
        )
    assert all(one.equal(other) for one, other in zip(*runs))


def test_nothing_in_the_batch(device, kernels):
    features, filters, pull = (t.to(device) for t in inputs((0, 4, 1, 3, 3)))
    attention, *kept = kernels.pyramid_correlation_fwd(features, filters, 2, "cosine")
    gradients = kernels.pyramid_correlation_bwd(pull, features, filters, attention, *kept, 2, "cosine")
    assert attention.shape == (0, 1, 3, 3) and [g.shape[0] for g in gradients] == [0, 0]
