import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import sparse_code
from cmx_fast.reference import spectral_norm_squared

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "sparse_code_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)


def unit_columns(features, atoms):
    return F.normalize(torch.randn(features, atoms), dim=0)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    ("shape", "atoms"), [((1, 5), 1), ((63, 17), 33), ((2, 3, 25, 12), 8), ((130, 300), 100), ((0, 4), 2)]
)
def test_codes_and_gradients_match_the_reference_in_float64(shape, atoms, steps):
    x, dictionary = torch.randn(shape).double(), 1.5 * unit_columns(shape[-1], atoms).double()

    def codes(x, dictionary, impl):
        return sparse_code(x, dictionary, steps=steps, lam=0.05, impl=impl)

    actual = run(lambda *inputs: codes(*inputs, "cpp"), x, dictionary)
    assert actual[0].shape == (*shape[:-1], atoms)
    for f, truth in zip(actual, run(lambda *inputs: codes(*inputs, "reference"), x, dictionary)):
        assert vector_error(f, truth) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "features", "atoms"), [(63, 17, 33), (1000, 128, 64), (129, 300, 100)])
def test_error_is_at_most_eagers(n, features, atoms, dtype):
    dictionary = unit_columns(features, atoms)

    def codes(x, impl):
        return sparse_code(x, dictionary.to(x.dtype), impl=impl).to(
            torch.promote_types(x.dtype, torch.float32)
        )

    assert_as_exact_as_eager(codes, [torch.randn(n, features)], dtype)


@pytest.mark.parametrize(("n", "features", "atoms"), [(63, 17, 33), (3000, 128, 64)])
def test_the_dictionarys_gradient_is_as_exact_as_eagers(n, features, atoms):
    assert_as_exact_as_eager(
        lambda x, dictionary, impl: sparse_code(x, dictionary, impl=impl),
        [torch.randn(n, features), unit_columns(features, atoms)],
        torch.float32,
    )


@given(n=st.integers(1, 70), atoms=st.integers(1, 12), seed=st.integers(0, 1000))
def test_codes_are_not_negative_and_the_objective_never_rises(n, atoms, seed):
    generator = torch.Generator().manual_seed(seed)
    x, dictionary = torch.randn(n, 9, generator=generator), torch.randn(9, atoms, generator=generator)
    before = torch.full((n,), torch.inf)
    for steps in (1, 2, 3, 10):
        codes = sparse_code(x, dictionary, steps=steps, lam=0.1)
        assert (codes >= 0).all()
        objective = (x - codes @ dictionary.T).square().sum(1) / 2 + 0.1 * codes.sum(1)
        assert (objective <= before + 1e-5 * (1 + x.square().sum(1))).all()
        before = objective


def test_an_orthonormal_dictionary_is_solved_in_one_step():
    dictionary = torch.linalg.qr(torch.randn(40, 16)).Q
    x = torch.randn(200, 40)
    expected = F.relu(x @ dictionary - 0.3)
    for steps in (1, 7):
        codes = sparse_code(x, dictionary, steps=steps, lam=0.3, step_size=1.0)
        torch.testing.assert_close(codes, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (5, 1)])
def test_step_size_is_that_of_the_spectral_norm(shape):
    dictionary = torch.randn(shape).double()
    expected = torch.linalg.matrix_norm(dictionary, 2).item() ** 2
    assert spectral_norm_squared(dictionary).item() == pytest.approx(expected, rel=1e-9)
    assert spectral_norm_squared(torch.eye(6)).item() == pytest.approx(1)
    assert sparse_code(torch.randn(3, 4), torch.zeros(4, 2)).eq(0).all()


def test_maps_are_read_as_they_lie():
    maps, dictionary = torch.randn(2, 20, 7, 9, requires_grad=True), unit_columns(20, 6).requires_grad_()
    tokens = maps.flatten(2).transpose(1, 2)
    codes = sparse_code(tokens, dictionary)
    codes.square().sum().backward()
    actual = maps.grad.clone(), dictionary.grad.clone()
    maps.grad = dictionary.grad = None
    again = sparse_code(tokens.reshape(-1, 20), dictionary)
    again.square().sum().backward()
    torch.testing.assert_close(codes.flatten(0, 1), again)
    torch.testing.assert_close(actual, (maps.grad, dictionary.grad))


def test_any_number_of_threads_gives_the_same_bits():
    x, dictionary = torch.randn(9000, 24), unit_columns(24, 16)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(lambda x, d: sparse_code(x, d, step_size=0.2), x, dictionary))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(actual.equal(first) for actual, first in zip(result, results[0]))


def test_nan_stays_in_its_vector():
    x = torch.randn(70, 8)
    x[66, 3] = float("nan")
    codes = sparse_code(x, unit_columns(8, 5))
    assert codes.isnan().any(1).nonzero().flatten().tolist() == [66]


def test_registered_as_pytorch_wants_it():
    x, dictionary = torch.randn(2, 9, 6, requires_grad=True), unit_columns(6, 4).requires_grad_()
    step_size = torch.tensor(0.3)
    torch.library.opcheck(torch.ops.cmx_fast.sparse_code_fwd, (x, dictionary, step_size, 0.1, 3))
    compiled = torch.compile(lambda x, d: sparse_code(x * 2, d), fullgraph=True)
    torch.testing.assert_close(compiled(x, dictionary), sparse_code(x * 2, dictionary))
    gradient = torch.autograd.grad(sparse_code(x, dictionary).sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


def test_gradcheck():
    x, dictionary = torch.randn(4, 5).double().requires_grad_(), torch.randn(5, 3).double().requires_grad_()
    # The step size counts as a constant, so it has to be one.
    assert torch.autograd.gradcheck(lambda x, d: sparse_code(x, d, steps=4, step_size=0.1), (x, dictionary))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(2, 3).long()}, TypeError, "x must be float32"),
        (
            {"dictionary": torch.ones(4, 2)},
            ValueError,
            "x has 3 features per vector but dictionary has 4 rows",
        ),
        ({"dictionary": torch.ones(3, 0)}, ValueError, r"dictionary must have shape \(C, k\), neither 0"),
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
        ({"steps": 2.0}, ValueError, "steps must be an integer of at least 1, got 2.0"),
        ({"lam": -0.1}, ValueError, "lam must be finite and not negative, got -0.1"),
        ({"step_size": 0.0}, ValueError, "step_size must be positive and finite, got 0.0"),
        ({"impl": "triton"}, ValueError, "Triton kernels run on CUDA tensors"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        sparse_code(**{"x": torch.ones(2, 3), "dictionary": torch.ones(3, 2)} | arguments)
