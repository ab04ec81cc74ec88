import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import cache_budget, info_nce, set_cache_budget
from cmx_fast.ops.info_nce import Options

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "info_nce_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)

OPTIONS = [
    dict(zip(("similarity", "symmetric", "in_batch", "within", "label_smoothing", "normalize"), values))
    for values in itertools.product(
        ("dot", "l2", "sql2"), (True, False), (True, False), (True, False), (0.0, 0.1), (True, False)
    )
]


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def no_cache():
    before = cache_budget()
    set_cache_budget(0)
    yield
    set_cache_budget(before)


@pytest.mark.parametrize(("name", "behind"), [("info_nce_fwd", "cache"), ("info_nce_bwd", "row_stats")])
def test_options_have_the_schemas_names_and_order(name, behind):
    names = [argument.name for argument in getattr(torch.ops.cmx_fast, name).default._schema.arguments]
    assert names[names.index("target") + 1 : names.index(behind)] == list(Options._fields)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_combination_of_options_matches_the_reference_in_float64(options):
    n, d = 37, 11
    query, key, scale = unit_rows(n, d), unit_rows(n, d), torch.tensor(5.0)
    bank, target = (unit_rows(40, d).double(), unit_rows(3, d).double()), torch.randperm(n)

    def loss(q, k, s, impl):
        return info_nce(q, k, s, bank=bank, target=target, reduction="none", impl=impl, **options)

    inputs = [x.double() for x in (query, key, scale)]
    for actual, truth in zip(
        run(lambda *x: loss(*x, "cpp"), *inputs), run(lambda *x: loss(*x, "reference"), *inputs)
    ):
        # cdist's own expansion of the distance costs the reference half its digits.
        assert vector_error(actual, truth) < (1e-12 if options["similarity"] == "dot" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(1, 17), (63, 64), (129, 300), (1000, 17)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_eagers(dtype, n, d, symmetric):
    query, key = unit_rows(n, d), unit_rows(n, d)
    assert_as_exact_as_eager(
        lambda q, k, s, impl: info_nce(q, k, s, symmetric=symmetric, reduction="none", impl=impl),
        [query, key, torch.tensor(1 / 0.07)],
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.9, 0.55, 0.25])  # losses of about 1, 0.1 and 0.001
def test_gradient_keeps_its_digits_when_the_positive_dominates(dtype, noise):
    n, d = 512, 64
    query = unit_rows(n, d)
    key = F.normalize(query + noise * torch.randn(n, d) / math.sqrt(d), dim=-1)
    assert_as_exact_as_eager(
        lambda q, k, s, impl: info_nce(q, k, s, reduction="none", impl=impl),
        [query, key, torch.tensor(1 / 0.07)],
        dtype,
    )
    if dtype == torch.float32:
        actual = run(lambda q, k: info_nce(q, k, 1 / 0.07, impl="cpp"), query, key)
        truth = run(lambda q, k: info_nce(q, k, 1 / 0.07, impl="reference"), query.double(), key.double())
        assert vector_error(actual[1], truth[1]) < 2e-6


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("similarity", ["dot", "l2"])
def test_recomputing_equals_keeping_the_similarities(similarity):
    query, key = unit_rows(300, 33), unit_rows(300, 33)
    recomputed = run(lambda q, k: info_nce(q, k, similarity=similarity, impl="cpp"), query, key)
    size = query.shape[0] * key.shape[0]
    kept = torch.ops.cmx_fast.info_nce_fwd(
        query[None],
        key[None],
        torch.tensor(1 / 0.07),
        [],
        None,
        True,
        False,
        similarity,
        True,
        False,
        0.0,
        True,
    )
    assert kept[3].numel() == size
    gradients = torch.ops.cmx_fast.info_nce_bwd(
        torch.full((1, 300), 1 / 300), query[None], key[None], torch.tensor(1 / 0.07), [], None, True, False,
        similarity, True, False, 0.0, *kept[1:], True, True,
    )  # fmt: skip
    for actual, expected in zip(gradients[:2], recomputed[1:]):
        assert vector_error(actual[0], expected) < 1e-6


@given(n=st.integers(2, 40), seed=st.integers(0, 1000))
def test_order_of_rows_does_not_matter(n, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, n, 16, generator=generator) / 4
    order = torch.randperm(n, generator=generator)
    plain = info_nce(query, key, 5.0, impl="cpp")
    torch.testing.assert_close(
        info_nce(query[order], key[order], 5.0, impl="cpp"), plain, rtol=2e-6, atol=1e-7
    )
    moved = info_nce(query, key[order], 5.0, target=order.argsort(), impl="cpp")
    torch.testing.assert_close(moved, plain, rtol=2e-6, atol=1e-7)


def test_sound2scene_losses_at_its_batch_of_64():
    # The distance form with scale 1: uniform, orthogonal and antipodal embeddings have known losses.
    orthogonal = torch.eye(64)
    loss = info_nce(orthogonal, orthogonal, 1.0, similarity="l2", impl="cpp")
    assert loss.item() == pytest.approx(math.log(1 + 63 * math.exp(-math.sqrt(2))), rel=1e-6)
    assert loss.item() == pytest.approx(2.792, abs=1e-3)
    equal = torch.ones(64, 8) / math.sqrt(8)
    assert info_nce(equal, equal, 1.0, similarity="l2", impl="cpp").item() == pytest.approx(
        math.log(64), rel=1e-6
    )
    assert info_nce(orthogonal, orthogonal, 1.0, impl="cpp").item() == pytest.approx(3.185, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.07])
@pytest.mark.parametrize("normalize", [True, False])
def test_finite_at_low_temperatures_and_for_zero_vectors(temperature, normalize):
    query, key, scale = unit_rows(200, 32), unit_rows(200, 32), torch.tensor(1 / temperature)
    query[3] = 0

    def loss(q, k, s, impl):
        return info_nce(q, k, s, normalize=normalize, impl=impl)

    results = run(lambda *x: loss(*x, "cpp"), query, key, scale)
    truth = run(lambda *x: loss(*x, "reference"), query.double(), key.double(), scale.double())
    for actual, expected in zip(results, truth):
        assert actual.isfinite().all()
        assert vector_error(actual, expected) < 1e-4


@pytest.mark.parametrize("where", ["query", "key", "bank"])
@pytest.mark.parametrize("similarity", ["dot", "l2", "sql2"])
def test_nan_in_the_input_is_nan_in_the_loss(where, similarity):
    tensors = {"query": unit_rows(50, 8), "key": unit_rows(50, 8), "bank": unit_rows(30, 8)}
    tensors[where][7, 3] = torch.nan
    assert info_nce(**tensors, similarity=similarity, impl="cpp").isnan()


def test_duplicate_rows_and_their_distance():
    query = unit_rows(5, 8).repeat(2, 1)
    for actual in run(lambda q: info_nce(q, q.detach().clone(), 3.0, similarity="l2", impl="cpp"), query):
        assert actual.isfinite().all()


def test_shapes_batch_dimensions_strides_and_empty_inputs():
    query, key = torch.randn(3, 2, 9, 6), torch.randn(3, 2, 9, 6)
    losses = info_nce(query, key, 0.7, reduction="none", impl="cpp")
    assert losses.shape == (3, 2, 9)
    torch.testing.assert_close(
        losses[1, 0], info_nce(query[1, 0], key[1, 0], 0.7, reduction="none", impl="cpp")
    )
    strided = query.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(info_nce(strided, key, 0.7, impl="cpp"), losses.mean())
    wide = info_nce(query[0, 0], torch.randn(700, 6), 0.7, symmetric=False, impl="cpp")
    assert wide.isfinite()
    assert info_nce(query[0, 0, :0], key[0, 0, :0], reduction="none", impl="cpp").shape == (0,)
    assert info_nce(query[0, 0, :1], key[0, 0, :1], impl="cpp") == 0  # no negatives


def test_same_bits_twice_and_for_any_number_of_threads():
    query, key, bank = unit_rows(900, 40), unit_rows(900, 40), unit_rows(500, 40)

    def results():
        return run(
            lambda q, k, s: info_nce(q, k, s, bank=bank, within=True, impl="cpp"),
            query,
            key,
            torch.tensor(9.0),
        )

    first = results()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, results()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "dot", "within": True},
        {"similarity": "l2"},
        {"similarity": "sql2", "normalize": True},
    ],
)
def test_gradient_by_finite_differences(options):
    query, key = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    bank = torch.randn(6, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, s: info_nce(
            q, k, s, bank=bank, label_smoothing=0.2, reduction="none", impl="cpp", **options
        ),
        (query, key, scale),
    )


def test_second_derivatives_are_refused():
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    (gradient,) = torch.autograd.grad(info_nce(query, key, impl="cpp"), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()


def test_registration_passes_opcheck():
    query, key = (torch.randn(1, 6, 4, requires_grad=True) for _ in range(2))
    scale = torch.tensor(2.0, requires_grad=True)
    arguments = (
        query,
        key,
        scale,
        [torch.randn(3, 4)],
        torch.randperm(6)[None],
        True,
        False,
        "dot",
        True,
        True,
        0.1,
    )
    for cache in (True, False):
        torch.library.opcheck(torch.ops.cmx_fast.info_nce_fwd, (*arguments, cache))


@pytest.mark.parametrize("budget", [0, 2**20])
def test_compiles_without_a_graph_break(budget):
    before = cache_budget()
    set_cache_budget(budget)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(
            lambda q, k, s: info_nce(q * 2, k, s, normalize=True), fullgraph=True, backend="aot_eager"
        )
        inputs = (torch.randn(12, 8), torch.randn(12, 8), torch.tensor(3.0))
        for actual, expected in zip(
            run(compiled, *inputs), run(lambda q, k, s: info_nce(q * 2, k, s, normalize=True), *inputs)
        ):
            torch.testing.assert_close(actual, expected)
    finally:
        set_cache_budget(before)


def test_autocast_multiplies_in_bfloat16_and_returns_float32():
    query, key = unit_rows(33, 16).requires_grad_(), unit_rows(33, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(query, key, impl="cpp")
    loss.backward()
    assert loss.dtype == torch.float32 and query.grad.dtype == torch.float32
    assert torch.equal(loss, info_nce(query.bfloat16(), key.bfloat16(), impl="cpp"))


def test_frozen_sides_get_no_gradient_and_the_temperature_still_does():
    query, key = unit_rows(20, 8), unit_rows(20, 8).requires_grad_()
    scale = torch.tensor(4.0, requires_grad=True)
    info_nce(query, key, scale, impl="cpp").backward()
    both = run(lambda q, k, s: info_nce(q, k, s, impl="cpp"), query, key, scale)
    torch.testing.assert_close(key.grad, both[2])
    torch.testing.assert_close(scale.grad, both[3])
    (only_scale,) = torch.autograd.grad(info_nce(query, key.detach(), scale, impl="cpp"), scale)
    torch.testing.assert_close(only_scale, both[3])


GOOD = {"query": torch.zeros(4, 3), "key": torch.zeros(4, 3)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": [1.0]}, TypeError, "query must be a tensor"),
        ({"query": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "query must be float32"),
        ({"query": torch.zeros(4)}, ValueError, r"query must have shape \(\*, N, D\), got \(4,\)"),
        ({"key": torch.zeros(4, 5)}, ValueError, "key has 5 features per row but query has 3"),
        ({"key": torch.zeros(4, 3).double()}, TypeError, "key is torch.float64 but query is torch.float32"),
        ({"key": torch.zeros(2, 4, 3)}, ValueError, "leading dimensions"),
        ({"key": torch.zeros(5, 3)}, ValueError, "as many keys as queries, got 5 and 4"),
        ({"key": torch.zeros(3, 3), "symmetric": False}, ValueError, "4 queries but 3 keys: pass target"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale must be positive and finite .*, got 0.0"),
        ({"logit_scale": -torch.ones(())}, ValueError, "logit_scale must be positive .*, got -1.0"),
        ({"logit_scale": torch.ones(2)}, ValueError, "logit_scale must be a real 0-d tensor"),
        ({"logit_scale": "x"}, TypeError, "logit_scale must be a number"),
        ({"similarity": "cosine"}, ValueError, "similarity must be one of .*got 'cosine'"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of .*got 'avg'"),
        ({"impl": "gpu"}, ValueError, "impl must be one of .*got 'gpu'"),
        ({"impl": "triton"}, ValueError, "impl='triton' can't run here: Triton kernels run on CUDA tensors"),
        ({"impl": "cuda"}, ValueError, "impl='cuda' can't run here: it has no CUDA C"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"target": torch.zeros(4)}, TypeError, "target must be an int64 tensor, got torch.float32"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target must have shape \(4,\), got \(3,\)"),
        ({"target": torch.tensor([0, 1, 2, 4])}, ValueError, r"target must lie in \[0, 4\), .* from 0 to 4"),
        ({"target": torch.tensor([0, 0, 1, 2])}, ValueError, "permutation"),
        ({"bank": torch.zeros(5)}, ValueError, r"bank\[0\] must have shape \(K, D\)"),
        ({"bank": [torch.zeros(5, 3), torch.zeros(5, 2)]}, ValueError, r"bank\[1\] has 2 features per row"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        info_nce(**(GOOD | change))
