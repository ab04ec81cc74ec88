"""The launchers of the sigmoid contrastive loss against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch
from contrastive_truth import unit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cmx_fast.ops._implementations import HAS_EXTENSION

pytest.importorskip("triton")
from cmx_fast.kernels.common import library
from cmx_fast.kernels.sigmoid_contrastive.launchers import sigmoid_contrastive_bwd, sigmoid_contrastive_fwd

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
NAMES = ("loss", "dquery", "dkey", "dscale", "dbias")


def problem(n: int, m: int, d: int, dtype=torch.float32, batch=1) -> tuple[Tensor, Tensor]:
    """Keys of which the first ones are near their queries."""
    query = torch.randn(batch, n, d)
    near = query + 0.7 * torch.randn(batch, n, d)
    return query.to(dtype), torch.cat([near, torch.randn(batch, m, d)], 1)[:, :m].to(dtype)


def ids_of(query: Tensor, key: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Ids that differ in their upper bits alone, some of which occur on one side only."""
    of_query, of_key = (torch.randint(classes, x.shape[:2]) for x in (query, key))
    return of_query << 32, (of_key + 1) << 32


def run(device, pull, query, key, scale=10.0, bias=-3.0, ids=(None, None), normalize=True, kept=True):
    """Losses (or their sums, where ``pull`` is a sample's) and gradients of the launchers, on the CPU."""
    numbers = [torch.tensor(x).to(device) for x in (scale, bias)]
    inputs = [
        query.to(device), key.to(device), *numbers, *(x if x is None else x.to(device) for x in ids), normalize,
        pull.dim() == 1,
    ]  # fmt: skip
    loss, *saved = sigmoid_contrastive_fwd(*inputs, kept, kept)
    return [x.cpu() for x in (loss, *sigmoid_contrastive_bwd(pull.to(device), *inputs, *saved, True, True))]


def truth(pull, query, key, scale=10.0, bias=-3.0, ids=(None, None), normalize=True, dtype=torch.float64):
    leaves = [x.to(dtype).requires_grad_() for x in (query, key)]
    leaves += [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (scale, bias)]
    q, k = (unit(x) for x in leaves[:2]) if normalize else leaves[:2]
    z = leaves[2] * (q @ k.transpose(1, 2)) + leaves[3]
    if ids[0] is None:
        ids = torch.arange(q.shape[1])[None], torch.arange(k.shape[1])[None]
    positive = ids[0][:, :, None] == ids[1][:, None]
    losses = -torch.nn.functional.logsigmoid(torch.where(positive, z, -z)).sum(-1)
    losses = losses.sum(1) if pull.dim() == 1 else losses
    return [losses.detach(), *torch.autograd.grad((losses * pull.to(dtype)).sum(), leaves)]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(device, query, key, *, summed=False, tolerance=3e-6, kept=True, **options):
    """Compare losses and all gradients with float64, judged as vectors."""
    pull = torch.rand(query.shape[:1] if summed else query.shape[:2]) + 0.5
    actual = run(device, pull, query, key, kept=kept, **options)
    expected = truth(pull, query, key, **options)
    floats = [torch.float32, query.dtype, key.dtype, torch.float32, torch.float32]
    assert [x.dtype for x in actual] == floats
    for name, f, t in zip(NAMES, actual, expected, strict=True):
        assert relative(f, t) < tolerance, name


@pytest.mark.parametrize(("n", "m", "d"), [(63, 63, 17), (129, 200, 64), (40, 70, 300), (1, 1, 3)])
@pytest.mark.parametrize("summed", [False, True])
def test_diagonal(device, n, m, d, summed):
    check(device, *problem(n, m, d), summed=summed)


@pytest.mark.parametrize(("n", "m", "classes"), [(63, 129, 5), (129, 40, 60), (70, 70, 1)])
@pytest.mark.parametrize("summed", [False, True])
def test_ids(device, n, m, classes, summed):
    query, key = problem(n, m, 17)
    check(device, query, key, ids=ids_of(query, key, classes), summed=summed)


@pytest.mark.parametrize("summed", [False, True])
def test_samples_are_problems_of_their_own(device, summed):
    query, key = problem(70, 80, 17, batch=3)
    check(device, query, key, summed=summed)
    check(device, query, key, ids=ids_of(query, key, 9), summed=summed)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_not_normalized_and_without_a_kept_gradient(device, kept, summed):
    query, key = problem(63, 80, 17)
    check(device, query, key, scale=0.5, normalize=False, summed=summed, kept=kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("summed", [False, True])
def test_wide_rows_by_chunks(device, dtype, summed, monkeypatch):
    monkeypatch.setattr(library, "FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(library, "CHUNK_BYTES", 64 * 4 * 90)  # one tile of rows, in bfloat16 two
    query, key = problem(150, 90, 300, dtype, batch=2)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-2
    check(device, query[:, :90], key, summed=summed, tolerance=tolerance)
    check(device, query, key, ids=ids_of(query, key, 9), summed=summed, tolerance=tolerance)
    check(device, query[:, :90], key, scale=0.1, normalize=False, tolerance=tolerance, kept=False)


@pytest.mark.parametrize("label", [0, -1])
def test_what_lies_beyond_the_last_row_is_nobodys_positive(device, label):
    """Padding has id and similarity 0."""
    query, key = problem(67, 5, 17)
    ids = torch.full((1, 67), label), torch.full((1, 5), label)
    check(device, query, key, ids=ids, bias=20.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, dtype):
    query, key = (unit(x.float()).to(dtype) for x in problem(63, 63, 40))
    pull = torch.rand(1, 63) + 0.5
    actual = run(device, pull, query, key, normalize=False)
    exact = truth(pull, query, key, normalize=False)
    eager = truth(pull, query, key, normalize=False, dtype=dtype)
    for name, f, e, t in zip(NAMES, actual, eager, exact, strict=True):
        assert relative(f, t) <= 1.5 * max(relative(e, t), 2e-3), name


@pytest.mark.parametrize(
    ("scale", "bias"), [(1e-38, 0.0), (1.0, -80.0), (1e4, 5.0), (1e20, 1e19), (1e36, -1.0)]
)
def test_logits_of_any_size(device, scale, bias):
    query, key = (torch.randint(-3, 4, (1, 40, 8)).float() for _ in "qk")  # whose products are exact
    check(device, query, key, scale=scale, bias=bias, normalize=False, tolerance=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_shows(device, value):
    query, key = problem(20, 30, 17)
    query[0, 5, 2] = value
    loss = run(device, torch.ones(1, 20), query, key, normalize=False)[0]
    assert loss.isnan().tolist() == [[row == 5 for row in range(20)]]
    assert run(device, torch.ones(1), query, key, normalize=False)[0].isnan().all()
    assert run(device, torch.ones(1, 30), key, query, normalize=False)[0].isnan().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("summed", [False, True])
def test_scale_not_positive(device, scale, summed):
    pull = torch.ones(1) if summed else torch.ones(1, 12)
    assert all(x.isnan().all() for x in run(device, pull, *problem(12, 12, 17), scale=scale))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("summed", [False, True])
def test_empty(device, n, m, summed):
    query, key = torch.randn(1, n, 17), torch.randn(1, m, 17)
    pull = torch.ones(1) if summed else torch.ones(1, n)
    results = run(device, pull, query, key, ids=ids_of(query, key, 3))
    assert results[0].shape == pull.shape
    assert [x.shape for x in results[1:3]] == [query.shape, key.shape]
    assert all((x == 0).all() for x in results)


def test_same_bits_twice(device):
    arguments = (torch.rand(1, 129), *problem(129, 150, 17))
    assert all(torch.equal(x, y) for x, y in zip(run(device, *arguments), run(device, *arguments)))


@pytest.mark.skipif(not HAS_EXTENSION, reason="the C++ extension, which has the schema, is not built")
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_results_have_the_shapes_that_the_compiler_is_told(device, summed, kept):
    inputs = [*problem(20, 30, 17), torch.tensor(1.0), torch.tensor(0.0), None, None]
    options = (True, summed, kept, kept)
    actual = sigmoid_contrastive_fwd(*(x if x is None else x.to(device) for x in inputs), *options)
    with FakeTensorMode():
        on_device = [x if x is None else torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs]
        described_outputs = torch.ops.cmx_fast.sigmoid_contrastive_fwd(*on_device, *options)
    assert [(x.shape, x.dtype) for x in actual] == [(x.shape, x.dtype) for x in described_outputs]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True), (False, False)])
def test_launches(device, count_launches, normalize, needed):
    """Two kernels each way, and one more to normalise; none visits the pairs for a gradient that nobody wants."""
    inputs = [x.to(device) for x in (*problem(20, 30, 17), torch.tensor(1.0), torch.tensor(0.0))]
    options = (None, None, normalize, True)
    with count_launches() as forward:
        _, *saved = sigmoid_contrastive_fwd(*inputs, *options, *needed)
    with count_launches() as backward:
        results = sigmoid_contrastive_bwd(torch.ones(1, device=device), *inputs, *options, *saved, *needed)
    assert forward.launches == 2 + normalize
    assert backward.launches == 1 + needed[1] * (1 + normalize)
    assert [x.numel() > 0 for x in results[:2]] == list(needed)
