import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import attention_consistency, pyramid_correlation

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "pyramid_correlation_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

NORMS = ("cosine", "softmax", "none")
SHAPES = [
    (2, 5, 7, 9),
    (3, 130, 2, 8, 8),
    (2, 3, 1, 1, 1),
    (2, 9, 2, 5, 13),
    (1, 200, 2, 70, 67),
    (0, 4, 3, 3),
]


def both(impl, **options):
    return lambda features, filters: pyramid_correlation(features, filters, impl=impl, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_map_and_gradients_match_the_reference_in_float64(shape, levels, norm):
    inputs = torch.randn(shape).double(), torch.randn(shape[:2]).double()
    actual = run(both("cpp", levels=levels, norm=norm), *inputs)
    assert actual[0].shape == (shape[0], *shape[2:])
    for f, truth in zip(actual, run(both("reference", levels=levels, norm=norm), *inputs)):
        assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 130, 2, 8, 8), (2, 64, 3, 14, 11), (4, 512, 9, 4)])
def test_error_is_at_most_eagers(shape, dtype, norm):
    def loss(features, filters, impl):
        return pyramid_correlation(features, filters, norm=norm, impl=impl)

    # Activations of a network: an offset that the channels share.
    features = torch.randn(shape) + 0.5
    assert_as_exact_as_eager(loss, [features, torch.randn(shape[:2])], dtype)


def test_a_filter_among_the_features_answers_with_one():
    features = torch.randn(2, 16, 3, 8, 8)
    filters = features[:, :, 1, 2, 5]
    attention = pyramid_correlation(features, filters, levels=1)
    torch.testing.assert_close(attention[:, 1, 2, 5], torch.ones(2))
    assert attention.flatten(1).argmax(1).tolist() == [(1 * 8 + 2) * 8 + 5] * 2
    constant = features[:, :, 1:2, 2:3, 5:6].expand(-1, -1, 2, 7, 5)
    torch.testing.assert_close(pyramid_correlation(constant, filters, levels=3), torch.ones(2, 2, 7, 5))


def test_two_levels_are_those_of_the_formula():
    features, filters = torch.randn(2, 6, 4, 8, 8), torch.randn(2, 6)
    coarse = F.avg_pool3d(features, (1, 2, 2))
    maps = [F.cosine_similarity(f, filters[:, :, None, None, None], dim=1) for f in (features, coarse)]
    maps[1] = F.interpolate(maps[1][:, None], size=(4, 8, 8), mode="trilinear")[:, 0]
    torch.testing.assert_close(pyramid_correlation(features, filters), (1 + sum(maps) / 2) / 2)


@given(height=st.integers(1, 9), width=st.integers(1, 9), levels=st.integers(1, 3), seed=st.integers(0, 1000))
def test_cosine_maps_lie_in_the_unit_interval_whatever_the_scale(height, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, height, width, generator=generator)
    filters = torch.randn(2, 5, generator=generator)
    attention = pyramid_correlation(features, filters, levels=levels)
    assert ((attention >= -1e-6) & (attention <= 1 + 1e-6)).all()
    torch.testing.assert_close(pyramid_correlation(300 * features, 0.01 * filters, levels=levels), attention)
    softmax = pyramid_correlation(features, filters, levels=levels, norm="softmax")
    torch.testing.assert_close(softmax.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_zero_vectors_answer_in_the_middle_and_get_no_gradient(impl):
    features = torch.randn(2, 4, 5, 6)
    features[0, :, 2, 3] = 0
    features, filters = (
        features.requires_grad_(),
        torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]).requires_grad_(),
    )
    attention = pyramid_correlation(features, filters, levels=1, impl=impl)
    attention.sum().backward()
    assert attention[0, 2, 3] == 0.5 and (attention[1] == 0.5).all()
    assert (features.grad[0, :, 2, 3] == 0).all() and (features.grad[1] == 0).all()
    assert (filters.grad[1] == 0).all() and filters.grad.isfinite().all()


def test_nan_stays_where_it_is_seen():
    features = torch.randn(2, 4, 9, 9)
    features[1, 2, 0, 0] = float("nan")
    attention = pyramid_correlation(features, torch.randn(2, 4))
    assert (
        attention[1, 0, 0].isnan() and attention[0].isfinite().all() and attention[1, 4:, 4:].isfinite().all()
    )


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_any_layout(layout):
    features = torch.randn(2, 6, 3, 7, 5)
    filters = torch.randn(2, 6)
    if layout == "channels_last":
        other = features.to(memory_format=torch.channels_last_3d)
    elif layout == "transposed":
        other = features.transpose(3, 4).contiguous().transpose(3, 4)
    else:
        other = torch.randn(2, 12, 3, 7, 5)[:, ::2].copy_(features)
    expected = run(both("auto"), features, filters)
    actual = run(both("auto"), other, filters)
    for f, e in zip(actual, expected):
        torch.testing.assert_close(f, e)


def test_any_number_of_threads_gives_the_same_bits():
    inputs = torch.randn(2, 300, 3, 40, 40), torch.randn(2, 300)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(both("cpp"), *inputs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(actual.equal(first) for actual, first in zip(result, results[0]))


def test_a_large_gradient_is_whole_after_others_came_and_went():
    """Large gradients lie in memory that is used again as soon as they are gone, and not before."""
    features, filters = torch.randn(2, 128, 4, 40, 40, requires_grad=True), torch.randn(2, 128)
    (kept,) = torch.autograd.grad(pyramid_correlation(features, filters).sum(), features)
    before = kept.clone()
    for scale in (2.0, 3.0):
        torch.autograd.grad((scale * pyramid_correlation(features, filters)).sum(), features)
    assert kept.equal(before)


@pytest.mark.parametrize("teach_features", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_consistency_is_the_squared_error_against_the_map(norm, teach_features):
    features, filters = torch.randn(3, 20, 2, 6, 7).double(), torch.randn(3, 20).double()
    prediction = torch.rand(3, 2, 6, 7).double()

    def loss(impl):
        return lambda *inputs: attention_consistency(
            *inputs, norm=norm, teach_features=teach_features, impl=impl
        )

    def gradients(impl):
        leaves = [x.clone().requires_grad_() for x in (features, filters, prediction)]
        value = loss(impl)(*leaves)
        (3 * value).backward()
        return [value.detach(), *(leaf.grad for leaf in leaves)]

    actual, expected = gradients("cpp"), gradients("reference")
    error = pyramid_correlation(features, filters, norm=norm) - prediction
    torch.testing.assert_close(actual[0], error.square().sum() / 3)
    for f, e in zip(actual, expected):
        assert (f is None) == (e is None)
        if e is not None:
            assert vector_error(f, e) < 1e-12
    assert (actual[1] is None) == (not teach_features)


def test_consistency_returns_the_map_when_asked():
    features, filters = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(2, 8)
    prediction = torch.rand(2, 5, 6, dtype=torch.bfloat16, requires_grad=True)
    loss, attention = attention_consistency(features, filters, prediction, return_map=True)
    loss.backward()
    assert prediction.grad.dtype == torch.bfloat16 and features.grad is None
    torch.testing.assert_close(attention, pyramid_correlation(features, filters).detach())
    assert not attention.requires_grad


def test_registered_as_pytorch_wants_it():
    features, filters = torch.randn(2, 5, 2, 4, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    prediction = torch.rand(2, 2, 4, 5, requires_grad=True)
    for norm in NORMS:
        torch.library.opcheck(torch.ops.cmx_fast.pyramid_correlation_fwd, (features, filters, 2, norm))
        torch.library.opcheck(
            torch.ops.cmx_fast.attention_consistency_fwd, (features, filters, prediction, 2, norm)
        )
    for function in (
        lambda x, k, p: pyramid_correlation(2 * x, k),
        lambda x, k, p: attention_consistency(2 * x, k, p, teach_features=True),
    ):
        compiled = torch.compile(function, fullgraph=True)
        torch.testing.assert_close(
            compiled(features, filters, prediction), function(features, filters, prediction)
        )
    gradient = torch.autograd.grad(pyramid_correlation(features, filters).sum(), features, create_graph=True)[
        0
    ]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(norm):
    features, filters = (torch.randn(s).double().requires_grad_() for s in ((2, 3, 2, 3, 5), (2, 3)))
    assert torch.autograd.gradcheck(lambda x, k: pyramid_correlation(x, k, norm=norm), (features, filters))


def test_filters_may_be_of_another_precision():
    features, filters = torch.randn(2, 8, 4, 4).bfloat16(), torch.randn(2, 8, requires_grad=True)
    attention = pyramid_correlation(features, filters)
    attention.sum().backward()
    assert attention.dtype == torch.float32 and filters.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.ones(2, 3, 4, 5).long()}, TypeError, "features must be float32"),
        ({"features": torch.ones(2, 3, 4)}, ValueError, r"features must have shape \(B, C, H, W\)"),
        ({"features": torch.ones(2, 3, 4, 0)}, ValueError, "only B may be 0"),
        ({"filters": torch.ones(2, 4)}, ValueError, r"filters must have shape \(2, 3\), one per sample"),
        ({"levels": 0}, ValueError, "levels must be 1 to 3, got 0"),
        ({"levels": 2.0}, ValueError, "levels must be 1 to 3, got 2.0"),
        ({"norm": "l1"}, ValueError, "norm must be one of 'cosine', 'softmax', 'none'; got 'l1'"),
        ({"impl": "triton"}, ValueError, "Triton kernels run on CUDA tensors"),
        ({"impl": "cuda"}, ValueError, r"CUDA C\+\+ kernels run on CUDA tensors"),
    ],
)
def test_refuses(arguments, error, message):
    given = {"features": torch.ones(2, 3, 4, 5), "filters": torch.ones(2, 3)} | arguments
    with pytest.raises(error, match=message):
        pyramid_correlation(**given)
    with pytest.raises(error, match=message):
        attention_consistency(**given, prediction=torch.ones(2, 4, 5))


def test_refuses_a_prediction_of_another_shape():
    with pytest.raises(ValueError, match=r"prediction must have shape \(2, 4, 5\)"):
        attention_consistency(torch.ones(2, 3, 4, 5), torch.ones(2, 3), torch.ones(2, 1, 4, 5))
