"""The InfoNCE launchers against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
from info_nce_launchers import DEFAULTS, check, problem, relative, run, truth

from cmx_fast.kernels.common import norms
from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd

# Infinities and NaN that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.fixture(params=["in place", "once"])
def norms_measured(request, monkeypatch):
    """By every program for its own rows and columns, as for a few halves, or before, as for the others."""
    halves = {torch.bfloat16, torch.float16}
    monkeypatch.setattr(
        norms, "MEASURED_IN_PLACE", {torch.float32, *halves} if request.param == "in place" else ()
    )


@pytest.mark.parametrize(("n", "d"), [(1, 17), (63, 17), (129, 64), (63, 300)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.usefixtures("norms_measured")
def test_sizes(device, n, d, symmetric):
    query, key, _ = problem(n, n, d)
    if n == 1:
        # No negative at all: the loss is 0 and so is every gradient.
        actual = run(device, torch.ones(1, 1), query, key, torch.tensor(14.3), symmetric=symmetric)
        assert all((x == 0).all() for x in actual)
    else:
        check(device, query, key, 14.3, symmetric=symmetric)


def test_many_rows(device):
    check(device, *problem(1000, 1000, 16)[:2], 14.3, symmetric=False)


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "l2", "normalize": False},
        {"similarity": "sql2", "normalize": False},
        {"similarity": "l2", "within": True, "banks": (30,)},
        {"similarity": "sql2", "within": True, "banks": (30,), "label_smoothing": 0.1},
        {"within": True},
        {"within": True, "symmetric": False, "normalize": False},
        {"banks": (70,)},
        {"banks": (70, 1, 129), "within": True, "label_smoothing": 0.1},
        {"banks": (70,), "in_batch": False, "symmetric": False},
        {"banks": (70,), "in_batch": False},
        {"banks": (0,), "in_batch": False, "within": True},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.1, "symmetric": False, "banks": (5,)},
        {"batch": 3, "normalize": False},
        {"batch": 2, "banks": (33,), "within": True, "similarity": "l2", "label_smoothing": 0.2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("norms_measured")
def test_options(device, options):
    options = dict(options)
    query, key, bank = problem(63, 63, 17, batch=options.pop("batch", 1), banks=options.pop("banks", ()))
    check(device, query, key, 1.0 if options.get("normalize") is False else 14.3, bank, **options)


@pytest.mark.parametrize("similarity", ["dot", "l2", "sql2"])
@pytest.mark.parametrize("normalize", [False, True])
def test_permuted_target(device, similarity, normalize):
    query, key, bank = problem(40, 40, 17, batch=2, banks=(9,))
    target = torch.stack([torch.randperm(40), torch.randperm(40)])
    check(device, query, key, 1.0, bank, target, similarity=similarity, normalize=normalize)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("similarity", ["dot", "l2"])
def test_shared_targets(device, in_batch, similarity):
    """One way, several queries may look for the same key, and some keys are nobody's positive."""
    query, key, bank = problem(70, 20, 17, batch=2, banks=(9,))
    target = torch.randint(0, 5, (2, 70))
    check(device, query, key, 5.0, bank, target, similarity=similarity, in_batch=in_batch, symmetric=False)


def test_more_keys_than_queries(device):
    query, key, _ = problem(33, 150, 17)
    check(device, query, key, 14.3, symmetric=False)


def test_wide_rows(device):
    """More than one output chunk, and a width that is no multiple of anything."""
    check(device, *problem(20, 20, 777)[:2], 14.3)


def test_non_contiguous(device):
    query, key, _ = problem(17, 30, 30)
    query, key = query.expand(2, 17, 30), key.transpose(1, 2).expand(2, 30, 30)
    check(device, query, key, 14.3, symmetric=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
@pytest.mark.parametrize("similarity", ["dot", "l2"])
@pytest.mark.usefixtures("norms_measured")
def test_half_precision(device, dtype, tolerance, similarity):
    query, key, bank = problem(63, 63, 40, banks=(20,), dtype=dtype)
    check(device, query, key, 14.3, bank, within=True, similarity=similarity, tolerance=tolerance)


@pytest.mark.parametrize("target_loss", [1.0, 1e-1, 1e-3])
def test_gradient_does_not_lose_the_positive(device, target_loss):
    """At a small loss the softmax is almost the one-hot target: the difference must not be taken after rounding."""
    key = torch.nn.functional.normalize(torch.randn(1, 64, 32), dim=-1)
    query = key + 0.05 * torch.randn_like(key)
    grad_loss, low, high = torch.full((1, 64), 1 / 64), 1.0, 60.0
    for _ in range(30):
        scale = (low + high) / 2
        mean = truth(grad_loss, query, key, torch.tensor(scale))[0].mean()
        low, high = (scale, high) if mean > target_loss else (low, scale)
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float16, 1.5e-3)):
        inputs = query.to(dtype), key.to(dtype), torch.tensor(scale)
        actual, expected = run(device, grad_loss, *inputs), truth(grad_loss, *inputs)
        assert all(relative(x, y) < tolerance for x, y in zip(actual[:3], expected[:3]))


@pytest.mark.parametrize("temperature", [0.005, 0.01])
def test_low_temperature(device, temperature):
    """Logits span +-200: nothing may overflow, and no row or column may lose all its terms."""
    query, key, _ = problem(70, 70, 8)
    query[0, 0], key[0, 3] = -key[0, 0], 0
    check(device, query, key, 1 / temperature, tolerance=3e-5)


def test_zero_vectors_and_coinciding_points(device):
    query, key, _ = problem(20, 20, 17)
    query[0, 0] = 0
    assert all(x.isfinite().all() for x in run(device, torch.ones(1, 20), query, key, torch.tensor(14.3)))
    key[0, 3] = query[0, 3]
    actual = run(device, torch.ones(1, 20), query, key, torch.tensor(1.0), similarity="l2", normalize=False)
    assert all(x.isfinite().all() for x in actual)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "bank"])
def test_not_finite_shows(device, value, where):
    query, key, bank = problem(20, 30, 17, banks=(9,))
    {"query": query[0, 3], "key": key[0, 25], "bank": bank[0][5]}[where][2] = value
    arguments = (torch.ones(1, 20), query.abs(), key, torch.tensor(1.0), bank)
    loss = run(device, *arguments, symmetric=False, normalize=False)[0]
    assert loss.isnan().any() if where == "query" else loss.isnan().all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_not_positive(device, scale, normalize):
    query, key, _ = problem(5, 5, 17)
    actual = run(device, torch.ones(1, 5), query, key, torch.tensor(scale), normalize=normalize)
    assert all(x.isnan().all() for x in actual)


def test_target_out_of_range_or_no_permutation(device):
    query, key, _ = problem(5, 5, 17)
    for bad, symmetric in (([0, 1, 5, 3, 4], True), ([0, 1, -1, 3, 4], False), ([0, 1, 1, 3, 4], True)):
        arguments = (torch.ones(1, 5), query, key, torch.tensor(1.0), (), torch.tensor([bad]))
        loss = run(device, *arguments, symmetric=symmetric)[0]
        assert loss.mean().isnan()


@pytest.mark.parametrize("width", [17, 200])
def test_a_target_beyond_32_bits_is_out_of_range(device, width):
    """It is no column of the matrix, whatever its lower half is."""
    query, key, _ = problem(5, 5, width)
    outputs = [
        run(
            device,
            torch.ones(1, 5),
            query,
            key,
            torch.tensor(1.0),
            (),
            torch.tensor([[0, 1, bad, 3, 4]]),
            symmetric=False,
        )
        for bad in (-1, 2**32 + 2, -(2**32) + 2)
    ]
    assert outputs[0][0].isnan().tolist() == [[False, False, True, False, False]]
    for output in outputs[1:]:
        for value, expected in zip(output, outputs[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("batch", "n", "m"), [(1, 0, 0), (0, 4, 4), (1, 0, 3)])
def test_empty(device, batch, n, m):
    query, key, _ = problem(n, m, 17, batch=batch)
    loss, dquery, dkey, dscale = run(
        device, torch.ones(batch, n), query, key, torch.tensor(1.0), symmetric=n == m
    )
    assert loss.shape == (batch, n)
    assert dquery.shape == query.shape
    assert (dkey == 0).all() and dkey.shape == key.shape
    assert dscale == 0


def test_only_what_is_needed(device):
    query, key, _ = problem(20, 20, 17)
    arguments = (torch.ones(1, 20), query, key, torch.tensor(14.3))
    both = run(device, *arguments)
    for need_query, need_key in ((True, False), (False, True), (False, False)):
        _, dquery, dkey, dscale = run(device, *arguments, need_query=need_query, need_key=need_key)
        assert torch.equal(dquery, both[1]) if need_query else dquery.shape == (0,)
        assert torch.equal(dkey, both[2]) if need_key else dkey.shape == (0,)
        assert torch.equal(dscale, both[3])


def test_same_bits_twice(device):
    query, key, bank = problem(129, 129, 17, banks=(70,))
    arguments = (torch.randn(1, 129), query, key, torch.tensor(14.3), bank)
    first, second = (run(device, *arguments, within=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second))


@pytest.mark.parametrize("banks", [(), (9, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"within": True, "similarity": "l2", "label_smoothing": 0.1}], ids=str
)
def test_launches(device, count_launches, banks, options):
    """At most four kernels each way, whatever the options."""
    query, key, bank = problem(20, 20, 17, banks=banks)
    on_device = [x.to(device) for x in (query, key, torch.tensor(14.3))]
    target = torch.randperm(20, device=device)[None]
    values = DEFAULTS._replace(**options)
    bank = [rows.to(device) for rows in bank]
    with count_launches() as forward:
        _, *saved = info_nce_fwd(*on_device, bank, target, *values, False)
    with count_launches() as backward:
        info_nce_bwd(torch.ones(1, 20, device=device), *on_device, bank, target, *values, *saved, True, True)
    assert forward.launches == 4
    assert backward.launches == 4


def test_few_halves_are_normalised_without_a_launch_of_its_own(device, count_launches):
    query, key, _ = problem(128, 128, 32, dtype=torch.bfloat16)
    with count_launches() as count:
        run(device, torch.ones(1, 128), query, key, torch.tensor(14.3), normalize=True)
    assert count.launches == 4


def test_float64_is_refused(device):
    query, key, _ = problem(5, 5, 17, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"float64.*impl='reference'"):
        run(device, torch.ones(1, 5), query, key, torch.tensor(1.0))
